"""Tuning of spiking networks: layer by layer, as a whole by its rates, through time."""
