"""Pictures of a table's figures."""

from math import log
from pathlib import Path
from typing import Any

from quant import FLOAT_BITS, time_steps

from ..plot import pyplot
from .figures import Figure


def draw(table: str, figures: list[Figure], path: Path) -> None:
    """Draw a table's picture."""
    {"latency": draw_latency}.get(table, draw_table)(figures, path)


def draw_latency(figures: list[Figure], path: Path) -> None:
    """Draw accuracy over latency, a panel a bit-width: early readouts and delays are one curve a kind of neuron."""
    plt = pyplot()
    widths = sorted({figure.bit for figure in figures}, reverse=True)
    canvas, panels = plt.subplots(1, len(widths), layout="constrained", squeeze=False, figsize=(4.6 * len(widths), 3.4))
    for axes, bit in zip(panels[0], widths, strict=True):
        chosen = [figure for figure in figures if figure.bit == bit]
        for neuron, style in (("signed", "o-"), ("unsigned", "s:")):
            points = sorted((figure.latency, figure.mean) for figure in chosen if figure.neuron == neuron)
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=4, label=f"{neuron} neurons")
        axes.axhline(chosen[0].ann, color="k", linestyle="--", label="quantized ANN")
        axes.axvline(time_steps(bit), color="0.7", linewidth=1)
        latencies = sorted({figure.latency for figure in chosen})
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
    """Return those of the values, the first ones first, whose labels do not touch on a logarithmic axis."""
    kept: list[int] = []
    for value in values:
        if all(abs(log(value / other)) > 0.08 * log(max(values) / min(values)) for other in kept):
            kept.append(value)
    return kept


def draw_table(figures: list[Figure], path: Path) -> None:
    """Draw accuracies, a line of panels a network, a panel a bit-width; quantized ANN and float network are lines.

    Bars are the standard deviation over seeds.
    """
    plt = pyplot()
    spiking = [figure for figure in figures if figure.anns]
    if not spiking:
        return
    archs = list(dict.fromkeys(figure.arch for figure in spiking))
    widths = sorted({figure.bit for figure in spiking}, reverse=True)
    labels = list(dict.fromkeys(figure.method for figure in spiking))
    canvas, panels = plt.subplots(len(archs), len(widths), layout="constrained", sharey=True, squeeze=False,
                                  figsize=(4.2 * len(widths) + 1, (0.3 * len(labels) + 1.4) * len(archs)))
    for row, arch in zip(panels, archs, strict=True):
        trained = [figure for figure in figures if figure.arch == arch and figure.bit == FLOAT_BITS]
        for axes, bit in zip(row, widths, strict=True):
            chosen = [figure for figure in spiking if (figure.arch, figure.bit) == (arch, bit)]
            for figure in trained:
                axes.axvline(figure.mean, color="0.6", linestyle=":", label="float network")
            if not chosen:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
                axes.set_xticks([])
            _panel(axes, chosen, labels)
            axes.set(title=f"{arch}, {bit} bits, T = {time_steps(bit)}")
    for axes in panels[-1]:
        axes.set(xlabel=f"accuracy on the {figures[0].dataset} test set (%)")
    for axes in panels[:, 0]:
        axes.set(yticks=range(len(labels)), yticklabels=labels, ylabel="what is done to the network")
    panels[0][0].invert_yaxis()
    _legend(canvas)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _panel(axes: Any, figures: list[Figure], labels: list[str]) -> None:
    for neuron, style in (("signed", "o"), ("unsigned", "s")):
        chosen = [figure for figure in figures if figure.neuron == neuron]
        if chosen:
            heights = [labels.index(figure.method) for figure in chosen]
            points = axes.plot([figure.mean for figure in chosen], heights, style, label=f"{neuron} neurons")
            for figure, height in zip(chosen, heights, strict=True):
                if figure.spread is not None:
                    axes.errorbar(figure.mean, height, xerr=figure.spread, capsize=3, color=points[0].get_color())
    if figures:
        axes.axvline(figures[0].ann, color="k", linestyle="--", label="quantized ANN")
    axes.grid(axis="y", alpha=0.3)


def _legend(canvas: Any) -> None:
    named = {label: handle for axes in canvas.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    canvas.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8)
