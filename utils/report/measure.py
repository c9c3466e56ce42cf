"""A quantized network and its spiking ones, measured on the same images, for snn.py and for the report of a run."""

from collections.abc import Collection
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import Network, Part, Values
from quant import quantized_once
from snn_layers import Deployed, LayerMonitor, LayerStatistics, Neuron, deploy, latency, to_spiking
from snn_layers.energy import Operations, mean_over_batches, operations

from ..training.engine import progress_bar
from ..training.metrics import Meter, ReadoutMeter
from ..training.step import autocast

Batches = Collection[tuple[Tensor, Tensor]]
RASTER, TRACES = 40, 3  # neurons of a unit in the spike raster, and in the membrane traces


@dataclass(frozen=True)
class Measured:
    """One spiking network.

    Attributes:
        readout: accuracy in percent after the first T' = 1..T steps of output.
        layers: firing rate and error, unit by unit.
        operations: layer by layer.
        latency: in steps, from the first input to the last output.
    """

    name: str
    readout: list[float]
    layers: list[LayerStatistics]
    operations: list[Operations]
    latency: int


@dataclass(frozen=True)
class Traces:
    """Some neurons of a unit on one image.

    Attributes:
        membrane: v/θ of `TRACES` neurons before the first step and after each one, [T + 1, TRACES]; None if the neuron's equation
            does not tell it.
        spikes: those of `RASTER` neurons in {-1, 0, 1}, [T, RASTER]; the traced neurons come first.
    """

    name: str
    membrane: Tensor | None
    spikes: Tensor


@torch.inference_mode()
def compare(ann: Network | Deployed, snn: Network | Deployed, batches: Batches, amp: bool = False, limit: int | None = None,
            statistics: bool = True) -> dict[str, Any]:
    """Run both networks on the same batches; return their scores, the accuracies after T' = 1..T steps, the layers' statistics.

    Args:
        statistics: of the layers; without them there are no "layers".
    """
    device = next(snn.parameters()).device
    ann_meter, meter = Meter(device), ReadoutMeter(snn.time_steps, device)
    with quantized_once(ann), quantized_once(snn), LayerMonitor(ann, snn) if statistics else nullcontext() as monitor:
        for images, labels in progress_bar(batches, f"ANN and SNN, T = {snn.time_steps}", limit):
            parts = snn.parts(images) if isinstance(snn, Deployed) else (images,)
            with autocast(device, amp):  # part by part: what the ANN puts out is still in the caches when the SNN is counted
                outputs = [(ann(part), snn.readouts(part)) for part in parts]
            ann_meter.update(torch.cat([logits for logits, _ in outputs]), labels)
            meter.update(torch.cat([logits for _, logits in outputs], 1), labels)
    readouts = meter.scores()
    return {"ann": ann_meter.scores(), "snn": readouts[-1], "readout": [scores.top1 for scores in readouts],
            **({"layers": monitor.statistics()} if statistics else {})}


@torch.inference_mode()
def measure(name: str, ann: Network, snn: Network, batches: Batches) -> Measured:
    """Return the measurements of a spiking network beside its ANN on these images."""
    deployed = deploy(snn, compile=False)
    found, rows = compare(ann, deployed, batches), []
    with quantized_once(ann):
        for images, _ in batches:
            rows += [(len(part), operations(ann, deployed, part)) for part in deployed.parts(images)]
    return Measured(name, found["readout"], found["layers"], mean_over_batches(rows), latency(snn))


@torch.inference_mode()
def sweep(ann: Network, neuron: Neuron, delays: list[int], batches: Batches) -> list[tuple[int, int, list[float]]]:
    """Return (delay d, latency of the last output step, accuracies after T' = 1..T output steps) for each delay.

    A readout after T' steps ends T - T' steps before that latency.
    """
    found = []
    for delay in delays:
        snn = to_spiking(ann, neuron, delay)
        deployed, meter = deploy(snn, compile=False), ReadoutMeter(snn.time_steps, next(snn.parameters()).device)
        for images, labels in batches:
            meter.update(deployed.readouts(images), labels)
        found.append((delay, latency(snn), [scores.top1 for scores in meter.scores()]))
    return found


@torch.inference_mode()
def traces(snn: Network, image: Tensor, names: list[str]) -> list[Traces]:
    """Return the traces of the liveliest neurons of the named units on an image [3, H, W], from the plain layers in float64."""
    snn = deepcopy(snn).double()
    return [trace(snn, part, values) for part, values in snn.walk(image[None].double()) if part.name in names]


def trace(snn: Network, unit: Part, values: Values) -> Traces:
    """Return a unit's traces for the values before it."""
    neuron, current = snn.activation(unit.name), snn.run(unit, values)[0]
    spikes, membrane = neuron.spike_train(current).flatten(1), neuron.membranes(current)
    active = spikes.diff(dim=0).abs().sum(0) + spikes.abs().mean(0)  # neurons that change most show most
    chosen = active.argsort(descending=True, stable=True)[:RASTER]
    if membrane is not None:
        membrane = (membrane.flatten(1)[:, chosen[:TRACES]] / neuron.threshold).float()
    return Traces(unit.name, membrane, spikes[:, chosen].float())
