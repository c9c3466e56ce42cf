"""The page of a run: what its network is, how its layers spike, how it learned, and where it comes from."""
