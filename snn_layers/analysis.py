"""Firing rates and errors of a spiking network, layer by layer, beside its quantized ANN."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models import Network

from .deployment.deploy import Deployed
from .neuron import IFNeuron


@dataclass(frozen=True)
class LayerStatistics:
    """One activation site.

    Attributes:
        threshold: θ.
        firing_rate: spikes of either sign per neuron and step, 0 to 1.
        negative_share: negative spikes over all spikes, 0 to 1.
        error: mean |θ · spike rate - ANN activation|, in the units of θ.
    """

    name: str
    threshold: float
    firing_rate: float
    negative_share: float
    error: float


class LayerMonitor:
    """Collects the statistics of every unit while an ANN and then its SNN, deployed or not, run on the same images."""

    def __init__(self, ann: Network, snn: Network | Deployed):
        self.time_steps = snn.time_steps
        self.activations: dict[str, Tensor] = {}
        self.thresholds = {name: neuron.threshold.detach().double() for name, neuron in snn.units()}
        self.zero = snn.zero if isinstance(snn, Deployed) else None  # a deployed network outputs s + zero, another one s·θ
        self.sums = {name: theta.new_zeros(4) for name, theta in self.thresholds.items()}
        self.stack = ExitStack()
        for network, record in ((ann, self._record_ann), (snn, self._record_snn)):
            for name, neuron in network.units():
                hook = neuron.register_forward_hook(lambda _, __, output, name=name, record=record: record(name, output))
                self.stack.callback(hook.remove)

    def __enter__(self) -> "LayerMonitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _record_ann(self, name: str, output: Tensor) -> None:
        self.activations[name] = output

    def _record_snn(self, name: str, output: Tensor) -> None:
        threshold = self.thresholds[name]
        unit, zero = (threshold, 0) if self.zero is None else (1, self.zero)
        values = output.float().unflatten(0, (self.time_steps, -1))
        totals = values.sum(0)
        total = totals.sum()
        # As s is -1, 0 or 1, Σ|s| = Σs²: one pass, where comparisons and absolute values take several.
        absolute = (values.square().sum() - 2 * zero * total + zero**2 * values.numel()) / unit**2
        signed = total / unit - zero * values.numel()
        # A deployed network may take the ANN's batch in several parts.
        activation, self.activations[name] = self.activations[name].tensor_split([len(totals)])
        mean = (totals - zero * self.time_steps) * (threshold / unit / self.time_steps)
        error = (mean - activation).abs().sum() * self.time_steps
        self.sums[name][:3] += torch.stack([absolute, (absolute - signed) / 2, error])
        self.sums[name][3] += values.numel()

    def statistics(self) -> list[LayerStatistics]:
        """Return the statistics of the layers in forward order, over all images so far, of all processes."""
        rows = []
        for name, ours in self.sums.items():
            sums = ours.clone()
            if dist.is_initialized():
                dist.all_reduce(sums)
            spikes, negative, error, count = sums.tolist()
            rate, share = spikes / max(count, 1), max(negative, 0) / max(spikes, 1)
            rows.append(LayerStatistics(name, self.thresholds[name].item(), rate, share, error / max(count, 1)))
        return rows


def layer_table(statistics: list[LayerStatistics]) -> str:
    """Return the statistics as a table of text."""
    lines = [f"{'layer':<16}{'threshold':>10}{'firing rate':>13}{'negative':>10}{'|SNN - ANN|':>13}"]
    for row in statistics:
        lines.append(f"{row.name:<16}{row.threshold:>10.4f}{row.firing_rate:>13.4f}{row.negative_share:>10.2%}{row.error:>13.5f}")
    return "\n".join(lines)


@torch.no_grad()
def spikes(snn: Network, images: Tensor) -> dict[str, Tensor]:
    """Return {unit: spike train [T, B, ...] of -1, 0 and 1}, in forward order, for images [B, 3, H, W].

    In float32, rounding may make a membrane close to its threshold fire a step early or late. `snn.double()` with images in
    float64 gives the spikes of a deployed network.
    """
    found: dict[str, Tensor] = {}

    def recorded(name: str, neuron: IFNeuron, output: Tensor) -> None:
        found[name] = (output / neuron.threshold).round().unflatten(0, (neuron.time_steps, -1))

    hooks = [neuron.register_forward_hook(lambda neuron, _, output, name=name: recorded(name, neuron, output))
             for name, neuron in snn.units()]
    try:
        snn(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
