"""A table's measured figures: as JSON, CSV, Markdown between markers, and as a picture."""

import csv
import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quant import time_steps

from .errors import UserError
from .rundir import write_text
from .tables import NEURONS, Row


@dataclass(frozen=True)
class Figure:
    """A measured row.

    Attributes:
        accuracies: on the test set in percent, one a seed.
        ann: of the quantized ANN, in percent.
        latency: steps from the first input to the last output.
        seconds: that calibration and tuning took, of each seed.
        stages: directories of the runs, each with its record; revisions of the code that measured them.
    """

    bit: int
    neuron: str
    method: str
    accuracies: list[float]
    ann: float
    latency: int
    seconds: list[float]
    stages: list[str]
    revisions: list[str]

    @property
    def mean(self) -> float:
        """Return the mean accuracy over the seeds in percent."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def measured(row: Row, records: list[dict[str, Any]], ann: float) -> Figure:
    """Return the figure of a row whose stages have left these records."""
    results = [record["result"] for record in records]
    accuracies = [result["after"] if "after" in result else result["snn"]["top1"] for result in results]
    seconds = [result["seconds"] for result in results]
    revisions = sorted({record["revision"] for record in records})
    return Figure(row.bit, row.neuron, row.method, accuracies, ann, results[0]["latency"], seconds,
                  [stage.name for stage in row.stages], revisions)


def write(figures: list[Figure], path: Path) -> None:
    """Write JSON to `path`, and CSV beside it."""
    write_text(path, json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("bit", "neuron", "method", "mean", "std", "ann", "latency", "seconds"))
        for figure in figures:
            spread = "" if figure.spread is None else f"{figure.spread:.3f}"
            writer.writerow((figure.bit, figure.neuron, figure.method, f"{figure.mean:.3f}", spread, f"{figure.ann:.3f}",
                             figure.latency, f"{statistics.fmean(figure.seconds):.1f}"))


def read(path: Path) -> list[Figure]:
    """Read what `write` wrote."""
    return [Figure(**entry) for entry in json.loads(path.read_text())]


def markdown(figures: list[Figure]) -> str:
    """Return one Markdown table a bit-width, a line a method, the neurons side by side."""
    parts = []
    for bit in sorted({figure.bit for figure in figures}, reverse=True):
        chosen = [figure for figure in figures if figure.bit == bit]
        lines = [f"{bit} bits, T = {time_steps(bit)}; quantized ANN {chosen[0].ann:.2f}", "",
                 f"| | latency, steps | {' | '.join(f'{neuron} | to the ANN | minutes' for neuron in NEURONS)} |",
                 "|---|---|" + "---|---|---|" * len(NEURONS)]
        for method in dict.fromkeys(figure.method for figure in chosen):
            found = {figure.neuron: figure for figure in chosen if figure.method == method}
            cells = " | ".join(_cells(found.get(neuron)) for neuron in NEURONS)
            lines.append(f"| {method} | {next(iter(found.values())).latency} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cells(figure: Figure | None) -> str:
    if figure is None:
        return " | | "
    accuracy = f"{figure.mean:.2f}" + ("" if figure.spread is None else f" ± {figure.spread:.2f}")
    minutes = statistics.fmean(figure.seconds) / 60
    return f"{accuracy} | {figure.mean - figure.ann:+.2f} | {f'{minutes:.1f}' if minutes else ''}"


def insert(text: str, name: str, table: str) -> str:
    """Return `text` with the table between the markers of this name.

    Raises:
        UserError: the markers are not there.
    """
    begin, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"no {begin} ... {end} to write the table between: put both lines into the file")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def draw(figures: Iterable[Figure], path: Path) -> None:
    """Draw accuracies by method, a panel a bit-width, with the ANN as a line and the spread over seeds as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures = list(figures)
    widths = sorted({figure.bit for figure in figures}, reverse=True)
    methods = list(dict.fromkeys(figure.method for figure in figures))
    canvas, panels = plt.subplots(1, len(widths), figsize=(4.2 * len(widths) + 1, 0.3 * len(methods) + 1.4), layout="constrained",
                                  sharey=True, squeeze=False)
    for bit, axes in zip(widths, panels[0], strict=True):
        for neuron, style in zip(NEURONS, ("o", "s"), strict=True):
            chosen = [figure for figure in figures if (figure.bit, figure.neuron) == (bit, neuron)]
            axes.errorbar([figure.mean for figure in chosen], [methods.index(figure.method) for figure in chosen],
                          xerr=[figure.spread or 0 for figure in chosen], fmt=style, capsize=3, label=neuron)
        axes.axvline(next(figure.ann for figure in figures if figure.bit == bit), color="k", linestyle="--", label="quantized ANN")
        axes.set(xlabel="accuracy on the CIFAR-10 test set (%)", title=f"{bit} bits, T = {time_steps(bit)}")
        axes.grid(axis="y", alpha=0.3)
    panels[0][0].set(yticks=range(len(methods)), yticklabels=methods)
    panels[0][0].invert_yaxis()
    panels[0][0].legend()
    canvas.savefig(path, dpi=110)
    plt.close(canvas)
