"""Networks as files: our checkpoints, published layouts, and the directory that a run keeps its own in."""
