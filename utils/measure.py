"""What the report of a run shows: a quantized network and its spiking ones, measured on the same images."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Unit
from quant import quantized_once
from snn_layers import Deployed, LayerMonitor, LayerStatistics, deploy, latency, to_spiking
from snn_layers.energy import Operations, operations, walk

Batches = Iterable[tuple[Tensor, Tensor]]
RASTER, TRACES = 40, 3  # neurons of a layer in the spike raster, and in the membrane traces


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
        membrane: v/θ of `TRACES` neurons after each step and before the first one, [T + 1, TRACES].
        spikes: those of `RASTER` neurons in {-1, 0, 1}, [T, RASTER]; the traced neurons come first.
    """

    name: str
    membrane: Tensor
    spikes: Tensor


@torch.inference_mode()
def measure(name: str, ann: Network, snn: Network, batches: Batches) -> Measured:
    """Return what a spiking network does beside its ANN on these images."""
    deployed = deploy(snn, compile=False)
    right, seen, rows = torch.zeros(snn.time_steps, dtype=torch.float64), 0, []
    with quantized_once(ann), LayerMonitor(ann, deployed) as monitor:
        for images, labels in batches:
            ann(images)
            right += right_readouts(deployed, images, labels)
            seen += len(labels)
        statistics = monitor.statistics()
    with quantized_once(ann):
        for images, _ in batches:
            rows += [(len(part), operations(ann, deployed, part)) for part in deployed.parts(images)]
    return Measured(name, (100 * right / seen).tolist(), statistics, mean_operations(rows), latency(snn))


def right_readouts(deployed: Deployed, images: Tensor, labels: Tensor) -> Tensor:
    """Return how many of the images are classified right after the first T' = 1..T steps, [T], on the CPU."""
    return (deployed.readouts(images).argmax(2) == labels).sum(1).cpu()


def mean_operations(rows: list[tuple[int, list[Operations]]]) -> list[Operations]:
    """Return the mean over batches of (images, operations of one image)."""
    total = sum(number for number, _ in rows)

    def mean(field: str, layer: int) -> float:
        return sum(number * getattr(batch[layer], field) for number, batch in rows) / total

    return [Operations(first.name, *(mean(field, layer) for field in ("macs", "adds", "nonzero", "acs")))
            for layer, first in enumerate(rows[0][1])]


@torch.inference_mode()
def sweep(ann: Network, neuron: str, delays: list[int], batches: Batches) -> list[tuple[int, int, list[float]]]:
    """Return (delay d, latency of the last output step, accuracies after T' = 1..T output steps) for each delay.

    A readout after T' steps ends T - T' steps before that latency.
    """
    found = []
    for delay in delays:
        snn = to_spiking(ann, neuron, delay)
        deployed, right, seen = deploy(snn, compile=False), 0, 0
        for images, labels in batches:
            right, seen = right + right_readouts(deployed, images, labels), seen + len(labels)
        found.append((delay, latency(snn), (100 * right / seen).tolist()))
    return found


@torch.inference_mode()
def traces(snn: Network, image: Tensor, names: list[str]) -> list[Traces]:
    """Return the traces of the liveliest neurons of the named units on an image [3, H, W], from the plain layers in float64."""
    found = []
    for site, state in walk(deepcopy(snn).double(), image[None].double()):
        if site is not None and site.name in names and isinstance(site.module, Unit):
            found.append(trace(site.name, site.module, state.x, state.residual if site.joins else None))
    return found


def trace(name: str, unit: Unit, x: Tensor, residual: Tensor | None) -> Traces:
    """Return a unit's traces for its spike input [T·1, ...]: v_t = v_0 + Σ I - θ Σ s, over what the neuron has seen by step t."""
    neuron, current = unit.activation, unit.current(x, residual)
    steps, theta = neuron.time_steps, neuron.threshold
    spikes = neuron.spike_train(current).flatten(1)
    current = (current.expand(steps, *current.shape[1:]) if neuron.encodes else current).flatten(1)
    seen = [min(step + neuron.delay, steps) for step in range(1, steps + 1)]
    membrane = theta * neuron.start + current.cumsum(0)[[step - 1 for step in seen]] - theta * spikes.cumsum(0)
    membrane = torch.cat((torch.full_like(membrane[:1], (theta * neuron.start).item()), membrane)) / theta
    active = spikes.diff(dim=0).abs().sum(0) + spikes.abs().mean(0)  # those that change the most show the most
    chosen = active.argsort(descending=True, stable=True)[:RASTER]
    return Traces(name, membrane[:, chosen[:TRACES]].float(), spikes[:, chosen].float())
