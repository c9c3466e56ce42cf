"""Pictures of a table's results."""

from math import log
from pathlib import Path
from typing import Any

from quant import FLOAT_BITS, time_steps

from ..plot import pyplot
from .results import Result


def draw(table: str, results: list[Result], path: Path) -> None:
    """Draw a table's picture."""
    {"latency": draw_latency}.get(table, draw_table)(results, path)


def draw_latency(results: list[Result], path: Path) -> None:
    """Draw accuracy over latency, a panel for each bit-width; early readouts and delays form one curve for each kind of neuron."""
    plt = pyplot()
    widths = sorted({result.bit for result in results}, reverse=True)
    canvas, panels = plt.subplots(1, len(widths), layout="constrained", squeeze=False, figsize=(4.6 * len(widths), 3.4))
    for axes, bit in zip(panels[0], widths, strict=True):
        chosen = [result for result in results if result.bit == bit]
        for neuron, style in (("signed", "o-"), ("unsigned", "s:")):
            points = sorted((result.latency, result.mean) for result in chosen if result.neuron == neuron)
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=4, label=f"{neuron} neurons")
        axes.axhline(chosen[0].ann, color="k", linestyle="--", label="quantized ANN")
        axes.axvline(time_steps(bit), color="0.7", linewidth=1)
        latencies = sorted({result.latency for result in chosen})
        axes.set(xscale="log", xlim=(latencies[0] / 1.15, latencies[-1] * 1.15), xlabel="latency (steps)",
                 ylabel=f"accuracy on the {chosen[0].dataset} test set (%)",
                 title=f"{chosen[0].arch}, {bit} bits: T' < {time_steps(bit)} | delay > 0")
        ticks = _readable([time_steps(bit), latencies[-1], *latencies])
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    _legend(canvas)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _readable(values: list[int]) -> list[int]:
    """Return the values, starting with the first, whose labels do not touch on a logarithmic axis."""
    kept: list[int] = []
    for value in values:
        if all(abs(log(value / other)) > 0.08 * log(max(values) / min(values)) for other in kept):
            kept.append(value)
    return kept


def draw_table(results: list[Result], path: Path) -> None:
    """Draw accuracies: a row of panels for each network, a panel for each bit-width; ANN and float network are lines.

    Bars are the standard deviation over seeds.
    """
    plt = pyplot()
    spiking = [result for result in results if result.anns]
    if not spiking:
        return
    archs = list(dict.fromkeys(result.arch for result in spiking))
    widths = sorted({result.bit for result in spiking}, reverse=True)
    labels = list(dict.fromkeys(result.method for result in spiking))
    canvas, panels = plt.subplots(len(archs), len(widths), layout="constrained", sharey=True, squeeze=False,
                                  figsize=(4.2 * len(widths) + 1, max(0.3 * len(labels) + 1.4, 3) * len(archs)))
    for row, arch in zip(panels, archs, strict=True):
        trained = [result for result in results if result.arch == arch and result.bit == FLOAT_BITS]
        for axes, bit in zip(row, widths, strict=True):
            chosen = [result for result in spiking if (result.arch, result.bit) == (arch, bit)]
            for result in trained:
                axes.axvline(result.mean, color="0.6", linestyle=":", label="float network")
            if not chosen:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
                axes.set_xticks([])
            _panel(axes, chosen, labels)
            axes.set(title=f"{arch}, {bit} bits, T = {time_steps(bit)}")
    for axes in panels[-1]:
        axes.set(xlabel=f"accuracy on the {results[0].dataset} test set (%)")
    for axes in panels[:, 0]:
        axes.set(yticks=range(len(labels)), yticklabels=labels, ylabel="what is done to the network")
    panels[0][0].invert_yaxis()
    _legend(canvas)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _panel(axes: Any, results: list[Result], labels: list[str]) -> None:
    for neuron, style in (("signed", "o"), ("unsigned", "s")):
        chosen = [result for result in results if result.neuron == neuron]
        if chosen:
            heights = [labels.index(result.method) for result in chosen]
            points = axes.plot([result.mean for result in chosen], heights, style, label=f"{neuron} neurons")
            for result, height in zip(chosen, heights, strict=True):
                if result.spread is not None:
                    axes.errorbar(result.mean, height, xerr=result.spread, capsize=3, color=points[0].get_color())
    if results:
        axes.axvline(results[0].ann, color="k", linestyle="--", label="quantized ANN")
    axes.grid(axis="y", alpha=0.3)


def _legend(canvas: Any) -> None:
    named = {label: handle for axes in canvas.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = int(canvas.get_figwidth() / 2)  # an entry needs two inches
    canvas.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=8)
