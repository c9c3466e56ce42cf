"""Batch normalisation with statistics, scale and shift of each time step."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Network
from quant import swap_, time_steps

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class StepNorm(nn.Module):
    """BN with values of its own for each time step: y_t = γ_t · (x_t - μ_t) / √(σ²_t + ε) + β_t.

    Currents of a converted network differ from step to step: at the first step a neuron has seen one input, at the last one all of
    them. At inference the statistics fold into scales and biases of each channel, as those of BN do, here T of each.

    Parameters and buffers have BN's names and the shape [T, C] where BN has [C].

    Args:
        norm: BN that gives each step its first values.
        steps: T, the steps that have values of their own.

    Attributes:
        time_steps: T' <= T, the steps that run, set by conversion. None: an ANN, which takes the mean scale and the mean bias.

    Source: after Zheng et al., "Going deeper with directly-trained larger spiking neural networks", AAAI 2021, and Duan et al.,
    "Temporal effective batch normalization in spiking neural networks", NeurIPS 2022; here the steps share nothing.
    """

    def __init__(self, norm: Norm, steps: int):
        super().__init__()
        self.steps, self.eps, self.momentum = steps, norm.eps, norm.momentum
        self.time_steps: int | None = None

        def rows(values: Tensor) -> Tensor:
            return values.detach().repeat(steps, 1)

        self.weight, self.bias = nn.Parameter(rows(norm.weight)), nn.Parameter(rows(norm.bias))
        self.register_buffer("running_mean", rows(norm.running_mean))
        self.register_buffer("running_var", rows(norm.running_var))
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked.clone())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map currents [T'·B, C, ...], time-major, to normalised ones; before conversion [B, C, ...] of an ANN.

        Raises:
            ValueError: training before conversion.
        """
        if self.time_steps is None:
            return self._without_steps(x)
        if self.training:
            self.num_batches_tracked += 1
        values = (self.running_mean, self.running_var, self.weight, self.bias)
        rows = (value.unbind()[:self.time_steps] for value in values)  # an early readout runs fewer steps
        parts = zip(x.unflatten(0, (self.time_steps, -1)).unbind(), *rows, strict=True)
        return torch.cat([F.batch_norm(*part, self.training, self.momentum, self.eps) for part in parts])

    def _without_steps(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("BN has constants of each time step, with which an ANN cannot train: start from the network before it")
        gain = self.weight / (self.running_var + self.eps).sqrt()
        bias = self.bias - self.running_mean * gain
        shape = (-1, *[1] * (x.dim() - 2))
        return x * gain.mean(0).view(shape) + bias.mean(0).view(shape)

    def extra_repr(self) -> str:
        """Describe channels and steps."""
        return f"{self.weight.shape[1]}, steps={self.steps}"


def norm_steps(network: nn.Module) -> int | None:
    """Return how many time steps have BN of their own; None if all share one."""
    return next((module.steps for module in network.modules() if isinstance(module, StepNorm)), None)


def refuse_steps(network: nn.Module) -> None:
    """Raise ValueError if time steps have BN of their own, where a single step, or mean rates, stand for all."""
    if (steps := norm_steps(network)) is not None:
        raise ValueError(f"the network has BN of each of its {steps} time steps: convert it with to_spiking; only tuning through "
                         "time can go on with it")


def give_steps_(network: nn.Module, steps: Mapping[nn.Module, int]) -> None:
    """Replace these BN modules of a network, in place, by `StepNorm`s of so many steps."""
    swap_(network, lambda module: StepNorm(module, steps[module]) if module in steps else None)


def adopt_steps_(network: Network, state: Mapping[str, Tensor]) -> None:
    """Give a network, in place, BN of each time step where a state dict has it, so that it loads strictly.

    Raises:
        ValueError: statistics of more than T = 2^bit - 1 steps, of none, or of different numbers of steps.
    """
    found = {}
    for name, module in network.named_modules():
        mean = state.get(f"{name}.running_mean")
        if isinstance(module, Norm) and isinstance(mean, Tensor) and mean.dim() == 2:
            found[module] = len(mean)
    counts = sorted(set(found.values()))
    if counts and (len(counts) > 1 or not 1 <= counts[0] <= time_steps(network.bit)):
        raise ValueError(f"holds BN statistics of {' and '.join(map(str, counts))} time steps: a {network.bit}-bit network has "
                         f"1 to {time_steps(network.bit)}, everywhere the same number")
    give_steps_(network, found)
