"""Measure a table: plan its runs, make those that are missing, write the figures. Goes on where it was interrupted.

    python reproduce.py                                   # the plan of the table: what is there, what the rest would take
    python reproduce.py --run                             # all of it
    python reproduce.py --run --rows "2 bits, signed" --seeds 0 1 2
    python reproduce.py --readme README.md                # put the measured table between its markers

The table `conversion` is the way of ResNet-20 on CIFAR-10 from the quantized network to a spiking one without loss. Each
stage is a call of snn.py or snn_ft.py in {study}/{stage}, with a record of its flags, revision and result.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import models
from utils import cli, figures, script, stages
from utils.errors import UserError
from utils.stages import Stage
from utils.tables import ARCH, Row, conversion

PROBE = 128  # images


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", action="store_true", help="make the runs that are missing (default: only say what they are)")
    add("--rows", nargs="+", default=[""], metavar="TEXT", help='only rows whose name holds one of these, as "2 bits, signed"')
    add("--seeds", nargs="+", type=cli.count(0, "seed"), default=[0], help="of calibration and fine-tuning (default: 0)")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where CIFAR-10 is (default: data)")
    add("--study", type=Path, default=Path("result/study"), metavar="DIR", help="where the stages are (default: result/study)")
    add("--result", type=Path, default=Path("result"), metavar="DIR", help="where table_conversion.* go (default: result)")
    add("--readme", type=Path, metavar="FILE", help="a file with the table's markers, to put the table in")
    return parser.parse_args(argv)


def needed(rows: list[Row]) -> Iterator[Stage]:
    """Yield each stage of the rows once, what it starts from first."""
    yield from dict.fromkeys(stage for row in rows for stage in (*row.before, *row.stages))


@torch.inference_mode()
def seconds_per_pass() -> float:
    """Return the time of a float forward pass over one image, from a short probe."""
    network = models.build(ARCH).eval().to(memory_format=torch.channels_last)
    images = torch.zeros(PROBE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network(images)
    began = time.monotonic()
    network(images)
    return (time.monotonic() - began) / PROBE


def plan(rows: list[Row], study: Path) -> list[Stage]:
    """Print each row with its state; return the stages that are missing."""
    missing = [stage for stage in needed(rows) if stages.record_of(stage, study) is None]
    per_pass = seconds_per_pass() if missing else 0.0
    for row in rows:
        left = [stage for stage in (*row.before, *row.stages) if stage in missing]
        print(f"{row.name:<50} {f'{sum(stage.passes for stage in left) * per_pass / 60:6.1f} minutes' if left else 'measured':>16}")
    minutes = sum(stage.passes for stage in missing) * per_pass / 60
    print(f"{len(missing)} runs are missing, about {minutes:.0f} minutes")
    return missing


def collect(rows: list[Row], study: Path) -> list[figures.Figure]:
    """Return the figures of the rows whose stages have all run."""
    found: list[tuple[Row, list[dict[str, Any]]]] = []
    for row in rows:
        records = [stages.record_of(stage, study) for stage in row.stages]
        if None not in records:
            found.append((row, records))
    anns = {row.bit: records[0]["result"]["ann"]["top1"] for row, records in found if row.method == "converted"}
    return [figures.measured(row, records, anns[row.bit]) for row, records in found if row.bit in anns]


def main(argv: list[str] | None = None) -> list[figures.Figure]:
    """Run the script; return the figures."""
    args = parse(argv)
    table = conversion(args.seeds, args.data, args.study)
    rows = [row for row in table if any(text in row.name for text in args.rows)]
    if not rows:
        raise UserError(f"--rows {' '.join(args.rows)}: no row has such a name; without --rows all are listed")
    missing = plan(rows, args.study)
    for number, stage in enumerate(missing if args.run else [], start=1):
        print(f"\n{number}/{len(missing)} {stage.name}", flush=True)
        stages.run(stage, args.study)
    found = collect(table, args.study)
    if found:
        path = args.result / "table_conversion.json"
        figures.write(found, path)
        figures.draw(found, path.with_suffix(".png"))
        print(f"{len(found)} of {len(table)} rows: {path}, .csv, .png")
        if args.readme:
            args.readme.write_text(figures.insert(args.readme.read_text(), "conversion", figures.markdown(found)))
    return found


if __name__ == "__main__":
    script.run(main)
