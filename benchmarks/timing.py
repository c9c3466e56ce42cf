"""Timing side by side: contenders take turns, and a ratio is the median of the ratios within each round."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Times:
    """Seconds of each contender, one entry a round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median of a contender's seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> tuple[float, float, float]:
        """Return (median, lower quartile, upper quartile) of name / base over the rounds."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return middle, low, high


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1, name: str = "") -> Times:
    """Run the contenders in turns; the warm-up rounds, in which compilers and caches work, do not count."""
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for index in tqdm(range(-warm_up, rounds), name, leave=False, disable=None):
        for key, call in contenders.items():
            began = time.perf_counter()
            call()
            if index >= 0:
                seconds[key].append(time.perf_counter() - began)
    return Times(seconds)


def peak_bytes(code: str) -> int:
    """Return by how much a process's peak memory grows after `ready()` while it runs `code`, Python that calls it once."""
    frame = ("import resource, sys\n"
             "def ready():\n    global before\n    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
             f"{code}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-c", frame], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * unit


def own_peak_bytes() -> int:
    """Return this process's peak memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
