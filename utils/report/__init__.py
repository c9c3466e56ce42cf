"""The page of a run: its network, how its layers spike, how it learned, and where it comes from."""
