"""Timing side by side: contenders take turns, and a ratio is the median of the ratios within each round."""

import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
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
            synchronize()
            began = time.perf_counter()
            call()
            synchronize()
            if index >= 0:
                seconds[key].append(time.perf_counter() - began)
    return Times(seconds)


def synchronize() -> None:
    """Wait for the GPU, if there is one: a clock that is read too early measures the launches only."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Return this process's peak memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at the parent's peak there
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes(setup: str, measured: str) -> int:
    """Return the bytes by which `measured` raises the peak memory of a new process that has run `setup`; both are Python code."""
    frame = (f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\nfrom benchmarks.timing import peak_memory\n"
             f"{setup}\nbefore = peak_memory()\n{measured}\nprint(peak_memory() - before)")
    done = subprocess.run([sys.executable, "-c", frame], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])
