"""A table's results as Markdown, between the markers of a document."""

import re
import statistics
from itertools import groupby

from quant import FLOAT_BITS, time_steps

from ..errors import UserError
from .results import Result

HEAD = ("neuron", "method", "accuracy, %", "to the ANN", "published, %", "epochs", "latency, steps", "tuning images", "minutes")
NONE_PUBLISHED = "none known"


def table(results: list[Result]) -> str:
    """Return one Markdown table for each network and bit-width, without columns that are empty in all of them."""
    cells = [_cells(result) for result in results]
    kept = [column for column in range(len(HEAD)) if any(line[column] not in ("", NONE_PUBLISHED) for line in cells)]
    parts = []
    for (arch, bit), group in groupby(zip(results, cells, strict=True), lambda pair: (pair[0].arch, pair[0].bit)):
        rows = list(group)
        ann = next((f"; quantized ANN {result.ann:.2f}" for result, _ in rows if result.anns), "")
        title = f"{arch}, float" if bit == FLOAT_BITS else f"{arch}, {bit} bits, T = {time_steps(bit)}{ann}"
        lines = ["| " + " | ".join(line[column] for column in kept) + " |" for line in (HEAD, *(line for _, line in rows))]
        parts.append("\n".join([title, "", lines[0], "|---" * len(kept) + "|", *lines[1:]]))
    sources: dict[str, dict[str, None]] = {}
    for result in results:
        if result.source is not None:
            sources.setdefault(result.source, {})[f"{result.published:.2f}"] = None
    notes = [f"{', '.join(accuracies)}: {source}" for source, accuracies in sources.items()]
    parts.append("Published: " + " · ".join(notes) if notes else "No published results of these rows are known.")
    if any(result.last for result in results):
        parts.append("Trained: the best epoch on the test set, as published, the last one in brackets; minutes of all "
                     "trainings of its chain. Spiking: minutes of calibration and tuning.")
    return "\n\n".join(parts)


def _cells(result: Result) -> tuple[str, ...]:
    accuracy = f"{result.mean:.2f}" + ("" if result.spread is None else f" ± {result.spread:.2f}")
    if result.last:
        accuracy += f" (last epoch {statistics.fmean(result.last):.2f})"
    loss = "" if result.to_ann is None else f"{result.to_ann:+.2f}"
    published = NONE_PUBLISHED if result.published is None else f"{result.published:.2f}"
    spent = f"{result.minutes:.1f}" if any(result.seconds) else ""
    epochs = result.epochs if result.epochs[:1].isdigit() else ""
    return result.neuron, result.method, accuracy, loss, published, epochs, str(result.latency or ""), result.tuning, spent


def insert(text: str, name: str, lines: str) -> str:
    """Return `text` with a table's lines between the markers of this name.

    Raises:
        UserError: the markers are not there.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"no {begin} ... {end} to write the table between: put both lines into the file")
    return pattern.sub(lambda _: f"{begin}\n{lines}\n{end}", text)
