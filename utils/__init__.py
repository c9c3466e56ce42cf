"""Data, engine, checkpoints and command lines shared by the scripts, which import this package before torch.

OpenMP threads without work spin, by default for about 15 ms, before they sleep. If another process needs their core, it loses
that time at each of the thousand waits of a training step. 5,000 turns take a quarter of a millisecond: longer than the time
between two operations, and short enough for others. The library reads this once, when torch loads it.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
