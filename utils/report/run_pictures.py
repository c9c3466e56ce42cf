"""The pictures of a run's report. Each returns a PNG, small enough to read on a narrow screen."""

import io
from collections.abc import Callable
from textwrap import fill
from typing import Any

from snn_layers import LayerStatistics

from ..plot import pyplot
from .measure import Measured, Traces

SIZE, DPI = (4.7, 3.3), 170  # inches
WIDEST, LINE = 64, 0.14  # letters of a line in a legend, its height in inches
STYLES = ("o-", "s:", "^--")  # of signed neurons, unsigned ones, those of a user


def picture(canvas: Any) -> bytes:
    """Return a canvas as a PNG, and close it."""
    file = io.BytesIO()
    canvas.savefig(file, dpi=DPI, metadata={"Software": None})
    pyplot().close(canvas)
    return file.getvalue()


def axes_of(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    """Return a canvas and its axes."""
    plt = pyplot()
    canvas, axes = plt.subplots(figsize=SIZE, layout="constrained")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return canvas, axes


def readout(networks: list[Measured], ann: float) -> bytes:
    """Draw accuracy over the steps that are read."""
    canvas, axes = axes_of("steps of output that are read, T'", "accuracy (%)")
    for network in networks:
        axes.plot(range(1, len(network.readout) + 1), network.readout, "o-", markersize=4, label=network.name)
    axes.axhline(ann, color="k", linestyle="--", label="quantized ANN")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return with_legend(canvas, axes)


def with_legend(canvas: Any, axes: Any) -> bytes:
    """Return the picture with its legend above the axes; long names take several lines."""
    handles, names = axes.get_legend_handles_labels()
    names = [fill(name, WIDEST) for name in names]
    columns = 2 if all(len(name) <= WIDEST / 2 for name in names) else 1
    lines = sum(name.count("\n") + 1 for name in names) / columns
    canvas.set_figheight(SIZE[1] + LINE * max(0, lines - 3))
    canvas.legend(handles, names, loc="outside upper left", ncols=columns, fontsize=7)
    return picture(canvas)


def short(name: str, most: int = 40) -> str:
    """Return a unit's name for a picture: body.3.part1 as 3.1; of a longer name than `most` the end."""
    name = name.removeprefix("body.").replace("part", "")
    return name if len(name) <= most else f"…{name[1 - most:]}"


def name_layers(axes: Any, names: list[str], first: int = 1) -> None:
    """Write the layers' names below an axis; if they have no room there, numbers, of which the first layer has `first`."""
    names = [short(name) for name in names]
    if len(names) <= 30 and max(map(len, names)) <= 8:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    else:
        shown = range(0, len(names), max(1, len(names) // 10))
        axes.set_xticks(shown, [str(index + first) for index in shown])
        axes.set_xlabel("layer, numbered from 1")


def per_layer(networks: list[Measured], value: Callable[[LayerStatistics], float], ylabel: str) -> bytes:
    """Draw a value of the layers' statistics."""
    canvas, axes = axes_of("layer (block.unit)", ylabel)
    for network in networks:
        axes.plot([value(layer) for layer in network.layers], "o-", markersize=3, label=network.name)
    name_layers(axes, [layer.name for layer in networks[0].layers])
    axes.set_ylim(bottom=0)
    return with_legend(canvas, axes)


def operations(networks: list[Measured]) -> bytes:
    """Draw the operations of each layer: MACs of the ANN, additions of the SNNs."""
    canvas, axes = axes_of("layer (block.unit)", "operations for an image (millions)")
    rows = networks[0].operations
    axes.bar(range(len(rows)), [row.macs / 1e6 for row in rows], color="0.8", label="ANN, multiply-accumulate")
    for network in networks:
        axes.plot([row.acs / 1e6 for row in network.operations], "o-", markersize=3, label=f"{network.name}, additions")
    name_layers(axes, [row.name for row in rows])
    return with_legend(canvas, axes)


def delays(swept: dict[str, list[tuple[int, int, list[float]]]], ann: float, shown: list[int]) -> bytes:
    """Draw accuracy over the delay, with the latency below it: a line for each number of steps that are `shown`."""
    canvas, axes = axes_of("delay d, and latency of a readout at T (steps)", "accuracy (%)")
    plt = pyplot()
    for (neuron, rows), style in zip(swept.items(), STYLES[:len(swept)], strict=True):
        for number, steps in enumerate(shown):
            color = plt.get_cmap("viridis")(0.85 * number / max(1, len(shown) - 1))
            found = [row[2][steps - 1] for row in rows]
            axes.plot([row[0] for row in rows], found, style, color=color, markersize=4, label=f"{neuron}, T' = {steps}")
    axes.axhline(ann, color="k", linestyle="--", label="quantized ANN")
    axes.set_xticks([row[0] for row in swept["signed"]], [f"{delay}\n{last}" for delay, last, _ in swept["signed"]])
    return with_legend(canvas, axes)


def membranes(found: list[Traces]) -> bytes:
    """Draw membranes over the steps, a panel a unit; triangles are spikes, upwards or taken back."""
    plt = pyplot()
    canvas, panels = plt.subplots(len(found), 1, figsize=(SIZE[0], 1.5 * len(found) + 0.6), layout="constrained", sharex=True,
                                  squeeze=False)
    for axes, unit in zip(panels[:, 0], found, strict=True):
        for neuron, membrane in enumerate(unit.membrane.T.tolist()):
            line, = axes.plot(range(len(membrane)), membrane, "-", linewidth=1.2)
            for sign, marker in ((1, "^"), (-1, "v")):
                steps = [step + 1 for step, spike in enumerate(unit.spikes[:, neuron].tolist()) if spike == sign]
                axes.plot(steps, [membrane[step] for step in steps], marker, color=line.get_color(), markersize=6)
        axes.set_title(f"unit {short(unit.name)}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_ylabel("membrane (θ)")
    panels[-1][0].set_xlabel("time step")
    panels[-1][0].xaxis.get_major_locator().set_params(integer=True)
    return picture(canvas)


def raster(found: list[Traces]) -> bytes:
    """Draw which neuron fires when, a panel a unit."""
    plt = pyplot()
    canvas, panels = plt.subplots(1, len(found), figsize=SIZE, layout="constrained", sharey=True, squeeze=False)
    for axes, unit in zip(panels[0], found, strict=True):
        for sign, color, label in ((1, "tab:blue", "spike"), (-1, "tab:red", "taken back")):
            steps, neurons = (unit.spikes == sign).nonzero().T.tolist()
            axes.scatter([step + 1 for step in steps], neurons, s=9, marker="s", color=color, label=label)
        axes.set_title(short(unit.name, 15), fontsize=9)
        axes.set(xlabel="time step", xlim=(0.5, len(unit.spikes) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0][0].set_ylabel("neuron, the liveliest at 0")
    canvas.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return picture(canvas)


def learning(history: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """Draw a log: accuracies and losses over epochs, or accuracy over the units of layer-wise tuning."""
    if history and "unit" in history[0]:
        canvas, axes = axes_of("unit (block.unit)", "accuracy on training images (%)")
        axes.plot([line["accuracy_after"] for line in history], "o-", markersize=3, label="SNN, after the unit was tuned")
        name_layers(axes, [line["name"] for line in history], history[0]["unit"] + 1)
        return [("Accuracy while the units are tuned", with_legend(canvas, axes))]
    epochs, pictures = [line["epoch"] + 1 for line in history], []
    kinds = (("Accuracy while training", "accuracy (%)", "top1"), ("Loss while training", "loss (nats)", "loss"))
    for title, ylabel, part in kinds:
        keys = [key for key in (f"train_{part}", f"test_{part}", f"check_{part}") if key in history[0]]
        if not keys:
            continue
        canvas, axes = axes_of("epoch", ylabel)
        for key in keys:
            name = {"train": "training set, augmented", "test": "test set", "check": "SNN, training images"}[key.split("_")[0]]
            axes.plot(epochs, [line[key] for line in history], "o-", markersize=3, label=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        pictures.append((title, with_legend(canvas, axes)))
    return pictures
