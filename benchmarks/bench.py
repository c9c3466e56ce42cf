"""Every speed claim, measured side by side in one run: contenders take turns, and a ratio is a median with quartiles.

    make bench                                             # all of it
    .venv/bin/python benchmarks/bench.py --only training   # some of it: memory, loader, training, resnet20-2, alex-4, ...

A whole run writes result/bench.json and result/bench.png. SpikingJelly takes part where it is installed (requirements-bench.txt).
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.inference import inference
from benchmarks.rows import BATCH, Row
from benchmarks.training import loader, memory, training
from benchmarks.tuning import tuning, whole
from utils import script
from utils.checkpoints.checkpoint import revision
from utils.plot import pyplot

RESULT = Path("result")
PARTS: dict[str, Callable[[], list[Row]]] = {
    "memory": memory,
    "loader": loader,
    "training": training,
    **{f"{arch}-{bit}": partial(inference, arch, bit, count, rounds)
       for arch, count, rounds in (("resnet20", BATCH, 7), ("alex", BATCH, 5), ("resnet18", 16, 3)) for bit in (2, 3, 4)},
    "tuning": tuning,
    "global": whole,
}


def line(row: Row) -> str:
    """Return a row as a line of text."""
    text = f"{row.what:<68}{row.ratio:>7.2f}  ({row.low:.2f} to {row.high:.2f})"
    if row.target is None:
        return text
    stretch = "" if row.stretch is None else f" ({row.stretch:g})"
    return f"{text}  target {'<=' if row.at_most else '>='} {row.target:g}{stretch}: {'met' if row.met else 'MISSED'}"


def draw(rows: list[Row], path: Path) -> None:
    """Draw each ratio as a bar with its quartiles, and its target as a mark."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(10, 0.32 * len(rows) + 1.2), layout="constrained")
    ratios = [row.ratio for row in rows]
    spread = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    colors = ["tab:gray" if row.target is None else "tab:blue" if row.met else "tab:red" for row in rows]
    axes.barh(range(len(rows)), ratios, xerr=spread, color=colors, height=0.7)
    for place, row in enumerate(rows):
        axes.annotate(f" {row.ratio:.2f}", (row.high, place), va="center", fontsize=8)
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.45, place + 0.45], "k", linewidth=2)
    axes.set(yticks=range(len(rows)), yticklabels=[row.what for row in rows], xscale="log", xlabel="ratio; black: target",
             title="gray: no target, blue: target met, red: target missed")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bench(argv: list[str] | None = None) -> list[Row]:
    """Measure the parts; print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"some of {', '.join(PARTS)}")
    chosen = parser.parse_args(argv).only
    rows, began = [], time.monotonic()
    for name in chosen:
        for row in PARTS[name]():
            rows.append(row)
            print(line(row), flush=True)
    if set(chosen) != set(PARTS):
        print(f"{time.monotonic() - began:.0f} s; not written: {RESULT / 'bench.json'} is of all parts")
        return rows
    RESULT.mkdir(exist_ok=True)
    cpu = f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    machine = {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "revision": revision()}
    (RESULT / "bench.json").write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    draw(rows, RESULT / "bench.png")
    print(f"{time.monotonic() - began:.0f} s; {RESULT / 'bench.json'}, {RESULT / 'bench.png'}")
    return rows


if __name__ == "__main__":
    script.run(bench)
