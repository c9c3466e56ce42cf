"""Neurons: an equation with a name, and the module that replaces a quantized ReLU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import signature
from types import MappingProxyType

import torch
from torch import Tensor, nn

import models
from quant import QuantReLU, quantize_activation, shifted

from .functional import HALF, integrate_and_fire


@dataclass(frozen=True)
class Neuron:
    """A kind of neuron: all that conversion, deployment, tuning and reports know of it.

    Attributes:
        name: for messages and directories.
        equation: maps (current [T, B, ...], threshold θ, delay=steps, start=in θ) to the spike train [T, B, ...] of -1, 0 and 1.
            If it also takes `membranes`, a list, it appends the membrane [B, ...] before the first step and after each step.
        signed: which form of the fused pass of a deployed network fires the same; None: none does, and the equation runs.
        most: spikes that it fires in a step; more than one: see `levels`.
    """

    name: str
    equation: Callable[..., Tensor]
    signed: bool | None = None
    most: int = 1


NEURONS = MappingProxyType({name: Neuron(name, partial(integrate_and_fire, signed=signed), signed)
                            for name, signed in (("signed", True), ("unsigned", False))})


@torch.no_grad()
def response(kind: Neuron, delay: int = 0, start: float = HALF) -> Tensor:
    """Return the spike train [3, 8, 8] that a neuron makes of small currents.

    Raises:
        ValueError: its equation fails, or the result is no spike train.
    """
    current, known = torch.linspace(-1, 2, 24 * 8).view(3, 8, 8), torch.tensor([-1.0, 0.0, 1.0])
    with models.failing(f"the neuron {kind.name}(current, threshold, delay=, start=)"):
        spikes = kind.equation(current, torch.tensor(1.0), delay=min(delay, len(current)), start=start)
    if isinstance(spikes, Tensor) and spikes.dtype != current.dtype:
        raise ValueError(f"the neuron {kind.name} returns spikes of {str(spikes.dtype).removeprefix('torch.')}: return them in the "
                         "type of the current, as with spikes.to(current.dtype)")
    if not isinstance(spikes, Tensor) or spikes.shape != current.shape or not torch.isin(spikes, known).all():
        raise ValueError(f"the neuron {kind.name} does not map currents [T, B, ...] to as many spikes of -1, 0 and 1")
    return spikes


def waits(kind: Neuron) -> bool:
    """Return whether a neuron fires otherwise with a delay than without one."""
    return not torch.equal(response(kind, 1), response(kind))


def checked(kind: Neuron, delay: int = 0, start: float = HALF) -> Neuron:
    """Return a neuron of a user after a look at what its equation makes of small currents.

    Args:
        delay, start: what the network will ask of it.

    Raises:
        ValueError: as `response`, or it fires the same without this delay or start.
    """
    spikes = response(kind)
    for name, value, other in (("delay", delay, (delay, HALF)), ("start", start, (0, start))):
        if other != (0, HALF) and torch.equal(response(kind, *other), spikes):
            raise ValueError(f"the neuron {kind.name} fires the same with {name} {value:g}: use it there, or leave it out")
    return kind


def named(name: str) -> Neuron:
    """Return the neuron "signed" or "unsigned".

    Raises:
        ValueError: another name.
    """
    if name not in NEURONS:
        raise ValueError(f"unknown neuron {name!r}: choose {' or '.join(NEURONS)}")
    return NEURONS[name]


def neuron_of(name: str, delay: int = 0, start: float = HALF) -> Neuron:
    """Return `named`, or the neuron FILE.py:FUNCTION of a command line, whose file is run.

    Raises:
        ValueError: as `named` and `checked`, or the function has the name of one of our neurons.
    """
    found = models.file_of(name)
    if found is not None and found[1] in NEURONS:
        raise ValueError(f"{name}: networks keep a neuron by its name, and {found[1]} is one of ours; rename the function")
    return named(name) if found is None else checked(Neuron(found[1], models.function_of(*found)), delay, start)


@lru_cache
def levels(most: int) -> Neuron:
    """Return the neuron that fires up to so many spikes in the one step that it runs: a quantized ReLU."""
    def equation(current: Tensor, threshold: Tensor, delay: int = 0, start: float = HALF) -> Tensor:
        return (quantize_activation(current, threshold * most, most) / threshold).round()

    return Neuron("levels", equation, most=most)


class IFNeuron(nn.Module):
    """Spiking activation; its membrane lives for one forward pass.

    Args:
        threshold: θ, the parameter of the quantized ReLU it replaces.
        time_steps: T.
        kind: its equation; True for "signed", False for "unsigned".
        delay: steps of input seen before the first output step.
        encodes: its current is constant over time and comes as [B, ...].
        start: membrane before the first step, in θ.
        bias: [C], added to the current of each step.
    """

    learned_scalar = "threshold"

    def __init__(self, threshold: nn.Parameter, time_steps: int, kind: Neuron | bool = True, delay: int = 0, encodes: bool = False,
                 start: float = HALF, bias: nn.Parameter | None = None):
        super().__init__()
        self.threshold = threshold
        self.register_parameter("bias", bias)
        self.kind = kind if isinstance(kind, Neuron) else NEURONS["signed" if kind else "unsigned"]
        self.time_steps, self.delay, self.encodes = time_steps, delay, encodes
        self.start = start

    @classmethod
    def from_quantized(cls, relu: QuantReLU, time_steps: int, kind: Neuron | bool, delay: int, encodes: bool,
                       start: float = HALF) -> "IFNeuron":
        """Return the neuron that shares the threshold of `relu`."""
        return cls(relu.threshold, time_steps, kind, delay, encodes, start, relu.bias)

    def currents(self, current: Tensor) -> Tensor:
        """Map current [T·B, ...], time-major ([B, ...] if the neuron encodes), to that of each step, with the bias, [T, B, ...].

        Raises:
            ValueError: currents in half precision, or, in the first neuron, NaN.
        """
        if current.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{str(current.dtype).removeprefix('torch.')} has too few bits for sums of currents: run the spiking "
                             "network in float32 without autocast, or deploy it")
        if self.encodes and current.isnan().any():
            raise ValueError("the images hold NaN or infinity, in which no neuron would fire")
        return self.unfolded(current)

    def unfolded(self, current: Tensor) -> Tensor:
        """Return `currents` without a check of the values, for which a GPU would wait."""
        steps, current = self.time_steps, shifted(current, self.bias)
        return current.expand(steps, *current.shape) if self.encodes else current.unflatten(0, (steps, -1))

    def spike_train(self, current: Tensor) -> Tensor:
        """Map current as `currents` does to spikes [T, B, ...] in {-1, 0, 1}."""
        current = self.currents(current)
        return self.kind.equation(current, self.threshold.detach().to(current.dtype), delay=self.delay, start=self.start)

    def membranes(self, current: Tensor) -> Tensor | None:
        """Map current as `currents` does to the membrane [T + 1, B, ...]; None if the equation does not tell it.

        The first of them is the membrane before the first step.
        """
        if "membranes" not in signature(self.kind.equation).parameters:
            return None
        current, found = self.currents(current), []
        self.kind.equation(current, self.threshold.detach().to(current.dtype), delay=self.delay, start=self.start, membranes=found)
        return torch.stack(found)

    def forward(self, current: Tensor) -> Tensor:
        """Map current as `currents` does to s·θ [T·B, ...], time-major."""
        return (self.spike_train(current) * self.threshold.detach()).flatten(0, 1)

    def extra_repr(self) -> str:
        """Describe the neuron."""
        return f"{self.kind.name}, T={self.time_steps}, delay={self.delay}, threshold={self.threshold.item():.4g}"
