"""Data, engine, checkpoints and command lines shared by the scripts."""
