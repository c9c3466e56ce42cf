"""A table's file: its results as JSON and as CSV, and which results may share it."""

import csv
import json
import re
import statistics
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

from quant import FLOAT_BITS

from ..errors import UserError
from ..files import write_text
from .results import Result, Row


def write(results: list[Result], path: Path) -> None:
    """Write JSON to `path`, and CSV beside it."""
    write_text(path, json.dumps([asdict(result) for result in results], indent=1) + "\n")
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("arch", "bit", "neuron", "method", "mean", "std", "seeds", "last", "ann", "latency", "images", "minutes",
                     "epochs", "published", "source"))
    for result in results:
        last = statistics.fmean(result.last) if result.last else None
        spread, last, ann = ("" if value is None else f"{value:.3f}" for value in (result.spread, last, result.ann))
        writer.writerow((*result.key, f"{result.mean:.3f}", spread, len(result.accuracies), last, ann, result.latency or "",
                         result.tuning, f"{result.minutes:.1f}", result.epochs, result.published or "", result.source or ""))
    write_text(path.with_suffix(".csv"), lines.getvalue())


def read(path: Path) -> list[Result]:
    """Read what `write` wrote; empty if there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        return [Result(**entry) for entry in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no table of this version ({error}): delete it, and it is written anew") from error


def merged(old: list[Result], new: list[Result], order: list[tuple]) -> list[Result]:
    """Return the `old` results, those of the same rows replaced by `new` ones, in the order of the table's keys.

    Seeds that only the old result of a row has stay.
    """
    known = {result.key: result for result in old}
    for result in new:
        known[result.key] = united(known.get(result.key), result)
    return [known[key] for key in order if key in known]


def united(old: Result | None, new: Result) -> Result:
    """Return `new` after the seeds that only `old` has; `new` alone if both measured a seed and differ."""
    if old is None:
        return new
    before, now = (dict(zip(result.stages, result.accuracies, strict=True)) for result in (old, new))
    kept = [index for index, stage in enumerate(old.stages) if stage not in now]
    kinds = {re.sub(r"\d+$", "", stage) for stage in (*before, *now)}  # without the seed
    if len(kinds) > 1 or any(before[stage] != now[stage] for stage in before.keys() & now.keys()):
        return new

    def both(name: str) -> list[Any]:
        values = getattr(old, name)
        return [*(values[index] for index in kept if values), *getattr(new, name)]

    of_seeds = {name: both(name) for name in ("accuracies", "last", "anns", "seconds", "stages")}
    return replace(new, **of_seeds, revisions=sorted({*new.revisions, *(old.revisions if kept else ())}))


def check_same(old: list[Result], rows: list[Row], path: Path) -> None:
    """Raise UserError if the table holds results of other networks of the rows' architecture."""
    known = [(result.arch, result.bit, _group(result.stages[0])) for result in old]
    for row in rows:
        ours = _group(row.stages[0].name)
        for arch, bit, group in known:
            # A float network is the same with --compile.
            drop = "-compile" if FLOAT_BITS in (bit, row.bit) else ""
            if arch == row.networks.arch and group.removesuffix(drop) != ours.removesuffix(drop):
                raise UserError(f"{path} has results of {group}, these rows are of {ours}: name another --result, or take those "
                                f"of {arch} out of it")


def _group(stage: str) -> str:
    return stage.split("/")[0]
