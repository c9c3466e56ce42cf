"""Data, engine, checkpoints and command lines shared by the scripts, which import this package before torch.

Threads of OpenMP that have no work wait by spinning, by default for about 15 ms before they sleep. Where another process needs
their core, each of the thousand waits of a training step costs it that time. 5,000 turns, a quarter of a millisecond, are longer
than what lies between two operations, and harm nobody. The library reads this once, when torch loads it.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
