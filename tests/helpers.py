"""What several tests need: pictures, comparisons, scripts in forks, the memory of this process."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = f"{ROOT / 'tests' / 'tiny_net.py'}:network"  # a network for scripts that need just one, and its name in directories
TINY_RUN = "tiny_net-network"


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a random picture, as smooth as a photograph: magnified noise."""
    noise = np.random.RandomState(seed).randint(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.BICUBIC)


def same(a: object, b: object) -> bool:
    """Return whether two contents of checkpoints are equal, bit for bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def timeless(history: list[dict]) -> list[dict]:
    """Return the lines of a log without what differs from run to run: seconds and revisions."""
    return [{key: value for key, value in line.items() if key not in ("seconds", "revisions")} for line in history]


class Forks:
    """A process that runs scripts in forks of itself, one after the other; see forks.py."""

    def __init__(self, server: subprocess.Popen):
        self.server = server

    def start(self, script: str, argv: list[str], log: str | Path, moment: tuple | None = None) -> int:
        """Start a script, which stops at a moment; return the number of its process."""
        job = {"script": script, "argv": argv, "log": str(log), "moment": moment}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self) -> int:
        """Wait for the end of the job that was started last; return its exit status."""
        return int(self.server.stdout.readline())

    def run(self, script: str, argv: list[str], log: str | Path, moment: tuple | None = None) -> int:
        """Start a script as `start` does; return its exit status."""
        self.start(script, argv, log, moment)
        return self.end()


def resident() -> float:
    """Return this process's memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
