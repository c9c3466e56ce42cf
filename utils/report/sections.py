"""The page of a run: measurements, pictures and tables of a network and its spiking networks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import Network
from quant import time_steps
from snn_layers import NEURONS, to_spiking, waits
from snn_layers.energy import FP32, INT8, ann_energy, snn_energy, total

from ..checkpoints.checkpoint import read_checkpoint, recorded, revision
from ..config import DataSettings
from ..data.splits import Data
from ..files import sha256
from ..training.engine import evaluate
from . import measure, page, run_pictures
from .measure import Measured
from .subject import Subject

BATCH = 50
MOST_DELAYS = 8  # delays of a sweep


def build(subject: Subject, data: Path, images: int) -> tuple[str, dict[str, Any]]:
    """Return the page and its numbers; for a float network only learning curves and provenance, and no numbers.

    Args:
        data: where the data set is.
        images: test images to measure on.
    """
    parts, numbers = [page.paragraph(note) for note in subject.notes], {}
    if subject.quantized:
        dataset = subject.network.dataset
        directories = (data,) if dataset == "imagenet" else ()
        size = recorded(subject.contents).get("size")
        settings = DataSettings(dataset, data, size, directories=directories, batch_size=BATCH, workers=2, dali_cpu=True)
        source = Data(settings, torch.device("cpu"))
        source.check(subject.network, subject.path)
        batches = source.batches(train=False, limit=images)
        sections, numbers = spiking_sections(subject, [(x, y) for x, y in batches])
        parts += sections
        images = batches.count
    parts.append(learning_section(subject))
    parts.append(provenance(subject, images))
    return page.page(subject.title, parts), numbers


def spiking_sections(subject: Subject, batches: list[tuple[Tensor, Tensor]]) -> tuple[list[str], dict[str, Any]]:
    """Return the measurements of the spiking networks: as sections, and as numbers, see `numbers_of`."""
    ann = subject.network.eval()
    kinds = subject.kinds
    order = ["unsigned", "signed", *(name for name in kinds if name not in NEURONS)]  # one of a user, if any, is the last
    snns = {name: to_spiking(ann, kinds[name]) for name in order}
    snns |= {tuned.name: tuned.snn for tuned in subject.tuned}
    networks = [measure.measure(name, ann, snn, batches) for name, snn in snns.items()]
    top1, count = evaluate(ann, batches).top1, sum(len(labels) for _, labels in batches)
    delays = spread(0, time_steps(ann.bit), MOST_DELAYS)
    swept = {name: measure.sweep(ann, kind, delays if waits(kind) else [0], batches) for name, kind in kinds.items()}
    numbers = numbers_of(networks, swept, top1, count)
    sections = [accuracy_section(networks, top1, count), latency_section(swept, top1), layer_section(networks),
                neuron_section(snns[order[-1]], batches[0][0][0]), energy_section(networks, ann, numbers)]
    return sections, numbers


def numbers_of(networks: list[Measured], swept: dict[str, list], ann: float, count: int) -> dict[str, Any]:
    """Return the sections as plain values: accuracies in percent, energies in µJ and operations of one image."""
    rows, presets = networks[0].operations, (FP32, INT8)
    return {
        "images": count,
        "ann": {"top1": ann, "energy": {preset.name: ann_energy(rows, preset) for preset in presets},
                "energy_without_zeros": {preset.name: ann_energy(rows, preset, skip_zeros=True) for preset in presets}},
        "snns": [asdict(network) | {"energy": {preset.name: snn_energy(network.operations, preset) for preset in presets}}
                 for network in networks],
        "delays": {neuron: [{"delay": delay, "latency": last, "readout": accuracies} for delay, last, accuracies in found]
                   for neuron, found in swept.items()}}


def spread(low: int, high: int, count: int) -> list[int]:
    """Return up to `count` integers from low to high."""
    return sorted({round(low + (high - low) * part / (count - 1)) for part in range(count)})


def accuracy_section(networks: list[Measured], ann: float, count: int) -> str:
    """Return accuracy over the steps that are read."""
    rows = [[network.name, f"{network.readout[-1]:.2f}", f"{network.readout[-1] - ann:+.2f}", network.latency]
            for network in networks]
    text = (f"On {count} test images, each of which is {100 / count:.2g} % of them. The quantized ANN has {ann:.2f} %. An early "
            "readout takes the first T' of T steps of the output; the network is the same.")
    drawn = page.picture("Accuracy over the steps that are read", run_pictures.readout(networks, ann),
                         "T' steps, no delay unless named.")
    return page.section("Accuracy", page.paragraph(text),
                        page.table(["neurons", "accuracy, %", "to the ANN", "latency, steps"], rows), page.pictures([drawn]))


def latency_section(swept: dict[str, list], ann: float) -> str:
    """Return the sweep over delay and steps, which shows the sequential error."""
    steps = len(swept["signed"][0][2])
    shown = spread(1, steps, 7)
    head = ["neurons", "delay", "latency at T, steps", *(f"T' = {step}" for step in shown), "lost to order"]
    rows = [[neuron, delay, last, *(f"{accuracies[step - 1]:.1f}" for step in shown), f"{ann - accuracies[-1]:.2f}"]
            for neuron, found in swept.items() for delay, last, accuracies in found]
    text = ("A neuron with delay d sees d steps more of its input before it fires; a readout of T' < T steps ends T - T' steps "
            "earlier. Spikes that come early or late make the sequential error, which the quantized ANN does not have; the "
            "last column shows, in points, how much of it is left at T' = T.")
    drawn = page.picture("Accuracy over delay", run_pictures.delays(swept, ann, spread(1, steps, 4)),
                         "A line for each number T' of steps that are read.")
    return page.section("Accuracy against latency", page.paragraph(text), page.pictures([drawn]), page.table(head, rows))


def layer_section(networks: list[Measured]) -> str:
    """Return error and firing rate layer by layer."""
    error = run_pictures.per_layer(networks, lambda layer: layer.error / layer.threshold, "mean |SNN - ANN| (θ of the layer)")
    rate = run_pictures.per_layer(networks, lambda layer: layer.firing_rate, "spikes a neuron and step")
    return page.section("Layer by layer", page.pictures([
        page.picture("Error of each layer", error, "Mean distance of θ times the spike rate to the quantized ANN's activation."),
        page.picture("Firing rate of each layer", rate, "Spikes of either sign: one that is taken back counts as two.")]))


def neuron_section(snn: Network, image: Tensor) -> str:
    """Return membranes and spikes of some neurons on the first test image."""
    names = [name for name, _ in snn.units()]
    found = measure.traces(snn, image, [names[index] for index in spread(0, len(names) - 1, 3)])
    told = [unit for unit in found if unit.membrane is not None]
    membranes = [page.picture(f"Membranes of three {snn.neuron} neurons of a unit", run_pictures.membranes(told),
                              "After each step, from half a threshold; ▲ a spike, ▼ one taken back.")] if told else []
    return page.section("Neurons on the first test image", page.pictures([
        *membranes, page.picture(f"Spikes of {snn.neuron} neurons", run_pictures.raster(found),
                                 "Those whose output changes most; the membranes are those of the first three.")]))


ENERGY = """Energy of the arithmetic for one image at 45 nm (Horowitz, ISSCC 2014): a multiply-accumulate (MAC) takes 4.6 pJ in FP32
and 0.23 pJ in INT8, an addition 0.9 and 0.03 pJ. Each spike of either sign, on the measured images, drives as many additions as
there are outputs that it reaches; the first layer sees the image and counts as MACs, once. Memory, neurons and batch normalisation
are counted of neither kind. The fair baseline of an SNN is the quantized ANN of the same bits in the same column."""


def energy_section(networks: list[Measured], ann: Network, numbers: dict[str, Any]) -> str:
    """Return operations and energy for an image; the energies are those of `numbers_of`."""
    rows = networks[0].operations
    plain = sum(type(module) in (nn.Conv2d, nn.Linear) for module in ann.modules())
    note = f" The weights of {plain} layers are float32 here: INT8 is their energy if they were quantized." if plain else ""
    sums, presets = total(rows), (FP32, INT8)

    def line(name: str, macs: float, adds: float, energies: dict[str, float], steps: object) -> list[object]:
        return [name, f"{macs / 1e6:.2f}", f"{adds / 1e6:.2f}", *(f"{energy:.2f}" for energy in energies.values()), steps]

    dense = line("quantized ANN", sums.macs, sums.adds, numbers["ann"]["energy"], "")
    lines = [["float ANN", *dense[1:4], "", ""], dense, line("quantized ANN, zero activations skipped", sums.nonzero, sums.adds,
                                                             numbers["ann"]["energy_without_zeros"], "")]
    lines += [line(f"SNN, {network.name}", total(network.operations).analog, total(network.operations).acs, snn["energy"],
                   network.latency) for network, snn in zip(networks, numbers["snns"], strict=True)]
    layers = [[f"{number}: {row.name}", f"{row.macs / 1e6:.3f}",
               *(f"{network.operations[number - 1].acs / 1e6:.3f}" for network in networks)]
              for number, row in enumerate(rows, start=1)]
    drawn = page.picture("Operations of each layer", run_pictures.operations(networks), "Additions over all steps.")
    return page.section(
        "Operations and energy", page.paragraph(ENERGY + note),
        page.table(["network", "MACs, millions", "additions, millions", *(f"{preset.name}, µJ" for preset in presets),
                    "latency, steps"], lines),
        page.pictures([drawn]),
        "<details><summary>Operations layer by layer, millions for an image</summary>",
        page.table(["layer", "ANN, MACs", *(f"{network.name}, additions" for network in networks)], layers), "</details>")


def learning_section(subject: Subject) -> str:
    """Return the learning curves of the network and of each tuning."""
    logs = [("", subject.contents.get("history", []))] + [(f"{tuned.name}: ", tuned.history) for tuned in subject.tuned]
    figures = [page.picture(prefix + title, drawn, f"{len(history)} lines of the log.")
               for prefix, history in logs if len(history) > 1 for title, drawn in run_pictures.learning(history)]
    if not figures:
        return page.section("Learning", page.paragraph("No log has more than one line."))
    return page.section("Learning", page.pictures(figures))


def provenance(subject: Subject, images: int) -> str:
    """Return files, arguments and revisions."""
    parts = [page.table([], facts(subject.path, subject.contents), "facts")]
    for tuned in subject.tuned:
        if tuned.path != subject.path:
            parts += [page.paragraph(tuned.name), page.table([], facts(tuned.path, read_checkpoint(tuned.path)), "facts")]
    measured = f", measured on {images} test images" if subject.quantized else ""
    parts.append(page.paragraph(f"Page made at revision {revision()} with PyTorch {torch.__version__}{measured}."))
    return page.section("Provenance", *parts)


def facts(path: Path, contents: dict[str, Any]) -> list[list[object]]:
    """Return the facts of a checkpoint, and its checksum."""
    args = contents.get("args", {})
    given = " ".join(f"{key}={value}" for key, value in sorted(args.items()) if value not in (None, []) and value is not False)
    return [["file", path], ["SHA-256", sha256(path)],
            ["revision", contents.get("revision", "unknown")], ["arguments", given]]
