"""Firing rates and errors of a spiking network, layer by layer, beside its quantized ANN."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import Network

from .deployment.deploy import Deployed
from .native import calls
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


def tally(spikes: Tensor, values: Tensor, units: Tensor, zero: int, ann_zero: int) -> Tensor:
    """Return [Σ|s|, Σ(s < 0), Σ|n · unit - value · ann_unit|] float32 for what deployed networks store: n is Σ_t s.

    All is float32, in which a neuron's counts are exact: a compiler then computes many at a time.

    Args:
        spikes: s + zero, [T, N, C].
        values: those of the ANN + ann_zero, [1, N, C].
        units: of n and of the ANN's values, [2] float32.
    """
    count, absolute = torch.zeros_like(spikes[0], dtype=torch.float32), torch.zeros_like(spikes[0], dtype=torch.float32)
    for step in spikes:
        fired = step.to(torch.float32) - zero
        count, absolute = count + fired, absolute + fired * fired
    error = (count * units[0] - (values[0].to(torch.float32) - ann_zero) * units[1]).abs()
    return torch.stack([absolute.sum(), (absolute - count).sum() / 2, error.sum()])


class LayerMonitor:
    """Collects the statistics of every unit while an ANN and its SNN run on the same images, the ANN first.

    Where both are deployed, `tally` reads what they put out once.
    """

    def __init__(self, ann: Network | Deployed, snn: Network | Deployed):
        self.time_steps, self.deployed = snn.time_steps, isinstance(snn, Deployed)
        self.zero = snn.zero if self.deployed else 0  # a deployed network puts out s + zero, another one s·θ
        self.ann_zero = ann.zero if isinstance(ann, Deployed) else None
        self.activations: dict[str, Tensor] = {}
        self.thresholds = {name: neuron.threshold.detach().double() for name, neuron in snn.units()}
        self.sums = {name: theta.new_zeros(4) for name, theta in self.thresholds.items()}
        steps = {name: theta / self.time_steps for name, theta in self.thresholds.items()}
        self.units = {name: torch.stack((steps[name], neuron.threshold.detach().double())).float() for name, neuron in ann.units()}
        self.stack = ExitStack()
        for network, record in ((ann, self._record_ann), (snn, self._record_snn)):
            for name, neuron in network.units():
                hook = neuron.register_forward_hook(
                    lambda neuron, _, output, name=name, record=record: record(name, neuron, output))
                self.stack.callback(hook.remove)

    def __enter__(self) -> "LayerMonitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _record_ann(self, name: str, neuron: nn.Module, output: Tensor) -> None:
        self.activations[name] = output if self.deployed or self.ann_zero is None else neuron.decode(output)

    def _record_snn(self, name: str, neuron: nn.Module, output: Tensor) -> None:
        # A deployed network may take the ANN's batch in several parts.
        activation, self.activations[name] = self.activations[name].tensor_split([len(output) // self.time_steps])
        if self.deployed and self.ann_zero is not None:
            spikes, values = (x.movedim(1, -1).reshape(steps, -1, x.shape[1])  # [T, B·..., C]
                              for x, steps in ((output, self.time_steps), (activation, 1)))
            given = spikes, values, self.units[name], self.zero, self.ann_zero
            absolute, negative, error = calls.run(calls.tally, tally, neuron.fused, *given)
        else:
            absolute, negative, error = self._differences(self.thresholds[name], output, activation)
        self.sums[name][:3] += torch.stack([absolute, negative, error * self.time_steps])
        self.sums[name][3] += output.numel()

    def _differences(self, threshold: Tensor, output: Tensor, activation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `tally` does for an ANN that is not deployed."""
        unit = 1 if self.deployed else threshold
        values = output.float().unflatten(0, (self.time_steps, -1))
        totals = values.sum(0)
        total = totals.sum()
        # As s is -1, 0 or 1, Σ|s| = Σs²: one pass, where comparisons and absolute values take several.
        absolute = (values.square().sum() - 2 * self.zero * total + self.zero**2 * values.numel()) / unit**2
        signed = total / unit - self.zero * values.numel()
        mean = (totals - self.zero * self.time_steps) * (threshold / unit / self.time_steps)
        return absolute, (absolute - signed) / 2, (mean - activation).abs().sum()

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
