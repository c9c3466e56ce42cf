"""Training and tuning, from a script's settings to its result, over one engine."""
