"""Training and tuning: what happens between a script's flags and its result, over one engine."""
