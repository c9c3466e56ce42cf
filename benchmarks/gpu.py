"""What a GPU does with this project, measured in a short time: parts in order of value, each in a process of its own.

    make gpu                                                         # 9 minutes on CIFAR-10 in data/, into result/gpu.json
    python benchmarks/gpu.py --minutes 9 --data DIR --output DIR     # a machine with torch alone runs all of it
    python benchmarks/gpu.py --part exact speed --minutes 3          # some of it
    python benchmarks/gpu.py --part resnet18 --minutes 20            # the chain of a wide network

A part that crashes or hangs is ended and noted; the others go on. Results are written as they come to OUTPUT/gpu.json, beside a log
of each part. Without a GPU everything runs small on the CPU, which shows whether it would run, but not how fast.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from utils.checkpoints.checkpoint import revision

# Seconds that a part may take at most. The last part, which trains, also gets what the others leave unused.
PARTS = {"tests": 100, "exact": 60, "accuracy": 80, "speed": 150, "repeat": 60, "chain": 90, "resnet18": 90}
USUAL = [part for part in PARTS if part != "resnet18"]  # a second chain needs a call of its own
HERE = Path(__file__).parent
GRACE = 5.0  # seconds in which a part that watches its time ends by itself


def card() -> dict[str, Any]:
    """Return the card and the versions with which the numbers were measured."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "revision": revision(), "card": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version(), "processors": properties.multi_processor_count}
    return found


def rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows that a part has written, whole lines only."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # the process was ended while it wrote
            break
    return found


def run_part(name: str, limit: float, data: Path, output: Path) -> dict[str, Any]:
    """Run a part in a process of its own, ended with all its children after `limit` seconds; return its rows and how it ended."""
    file, log = output / f"{name}.jsonl", output / f"{name}.log"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, str(HERE / "gpu_parts.py"), name, "--data", str(data), "--rows", str(file),
               "--seconds", f"{limit:.0f}"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit + GRACE)
            status = "done" if code == 0 else f"ended with {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            status = f"ended after {limit + GRACE:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"seconds": round(time.monotonic() - began, 1), "status": status, "rows": rows(file)}


def last_line(log: Path) -> str:
    """Return the last line that a part has printed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing printed"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the parts and return what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="time for all parts together (default: 9)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where CIFAR-10 is (default: data)")
    parser.add_argument("--output", type=Path, default=Path("result"), help="where gpu.json and the logs go (default: result)")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=USUAL, help="only these (default: all but resnet18)")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    found: dict[str, Any] = card() | {"parts": {}}
    for number, name in enumerate(args.part):
        left = end - time.monotonic()
        later = sum(PARTS[part] for part in args.part[number + 1 :])
        limit = left if name == args.part[-1] else min(PARTS[name], left - min(later, left / 2))
        if left < 2 * GRACE:
            found["parts"][name] = {"seconds": 0.0, "status": "no time left", "rows": []}
        else:
            found["parts"][name] = run_part(name, limit - GRACE, args.data, args.output)
        (args.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found['parts'][name]['status']}, {found['parts'][name]['seconds']:.0f} s", flush=True)
        for row in found["parts"][name]["rows"]:
            print("   ", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
