"""A table's figures as Markdown, between the markers of a document."""

import re
import statistics
from itertools import groupby

from quant import FLOAT_BITS, time_steps

from ..errors import UserError
from .figures import Figure

HEAD = ("neuron", "method", "accuracy, %", "to the ANN", "published, %", "epochs", "latency, steps", "tuning images", "minutes")
NONE_PUBLISHED = "none known"


def table(figures: list[Figure]) -> str:
    """Return one Markdown table for each network and bit-width, without the columns that say nothing in any of them."""
    cells = [_cells(figure) for figure in figures]
    kept = [column for column in range(len(HEAD)) if any(line[column] not in ("", NONE_PUBLISHED) for line in cells)]
    parts = []
    for (arch, bit), group in groupby(zip(figures, cells, strict=True), lambda pair: (pair[0].arch, pair[0].bit)):
        rows = list(group)
        ann = next((f"; quantized ANN {figure.ann:.2f}" for figure, _ in rows if figure.anns), "")
        title = f"{arch}, float" if bit == FLOAT_BITS else f"{arch}, {bit} bits, T = {time_steps(bit)}{ann}"
        lines = ["| " + " | ".join(line[column] for column in kept) + " |" for line in (HEAD, *(line for _, line in rows))]
        parts.append("\n".join([title, "", lines[0], "|---" * len(kept) + "|", *lines[1:]]))
    sources: dict[str, dict[str, None]] = {}
    for figure in figures:
        if figure.source is not None:
            sources.setdefault(figure.source, {})[f"{figure.published:.2f}"] = None
    notes = [f"{', '.join(accuracies)}: {source}" for source, accuracies in sources.items()]
    parts.append("Published: " + " · ".join(notes) if notes else "No published figures of these rows are known.")
    if any(figure.last for figure in figures):
        parts.append("Trained: the best epoch on the test set, as published, the last one in brackets; minutes of all its "
                     "trainings from float on. Spiking: minutes of calibration and tuning.")
    return "\n\n".join(parts)


def _cells(figure: Figure) -> tuple[str, ...]:
    accuracy = f"{figure.mean:.2f}" + ("" if figure.spread is None else f" ± {figure.spread:.2f}")
    if figure.last:
        accuracy += f" (last epoch {statistics.fmean(figure.last):.2f})"
    loss = "" if figure.to_ann is None else f"{figure.to_ann:+.2f}"
    published = NONE_PUBLISHED if figure.published is None else f"{figure.published:.2f}"
    spent = f"{figure.minutes:.1f}" if any(figure.seconds) else ""
    epochs = figure.epochs if figure.epochs[:1].isdigit() else ""
    return figure.neuron, figure.method, accuracy, loss, published, epochs, str(figure.latency or ""), figure.tuning, spent


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
