"""Pictures of a table's figures."""

from pathlib import Path
from typing import Any

from quant import FLOAT_BITS, time_steps

from .figures import Figure


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files; imported when it is needed, as it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


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
            _panel(axes, chosen, labels)
            axes.set(title=f"{arch}, {bit} bits, T = {time_steps(bit)}")
    for axes in panels[-1]:
        axes.set(xlabel=f"accuracy on the {figures[0].dataset} test set (%)")
    for axes in panels[:, 0]:
        axes.set(yticks=range(len(labels)), yticklabels=labels, ylabel="what is done to the network")
    panels[0][0].invert_yaxis()
    panels[0][0].legend(fontsize=8)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _panel(axes: Any, figures: list[Figure], labels: list[str]) -> None:
    for neuron, style in (("signed", "o"), ("unsigned", "s")):
        chosen = [figure for figure in figures if figure.neuron == neuron]
        if chosen:
            axes.errorbar([figure.mean for figure in chosen], [labels.index(figure.method) for figure in chosen],
                          xerr=[figure.spread or 0 for figure in chosen], fmt=style, capsize=3, label=f"{neuron} neurons")
    if figures:
        axes.axvline(figures[0].anns[0], color="k", linestyle="--", label="quantized ANN")
    axes.grid(axis="y", alpha=0.3)
