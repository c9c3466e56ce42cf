"""The network: a body of units, a pooling, a linear head. One class serves float, quantized and spiking networks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .unit import BasicBlock, Unit


@dataclass(frozen=True)
class State:
    """What lies between two sites: the tensor that goes on, and the input of the open block, if one is open."""

    x: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True)
class Site:
    """One step of a body: a unit, or a module without parameters such as Flatten.

    Attributes:
        opens_block: its input is the residual of the unit that follows.
        joins: it adds the residual.
    """

    name: str
    module: nn.Module
    opens_block: bool = False
    joins: bool = False

    def __call__(self, state: State) -> State:
        """Advance by this step."""
        if self.joins:
            return State(self.module(state.x, state.residual))
        return State(self.module(state.x), state.x if self.opens_block else None)


def mean_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Average x [T·B, ...], time-major, over its T steps -> [B, ...]; an ANN is the case T = 1."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).mean(0)


class Network(nn.Module):
    """logits = head(pool(mean_T(body(images)))).

    `time_steps` is 1 until conversion sets it to T: pooling and head are linear, so that they run once, on the mean
    over T, and the logits [B, classes] of a spiking network are directly comparable with its ANN's.

    Attributes:
        arch, dataset, num_classes: what `models.build` was asked for.
        bit, weight_bit: precision; 32 is float, `weight_bit` None follows the recipe.
        neuron, delay, start: set by conversion; `neuron` None is an ANN.
        trainable_start: True for an import that lacks a threshold: it serves as a start for training only.
    """

    def __init__(self, body: nn.Sequential, pool: nn.Module, head: nn.Linear):
        super().__init__()
        self.body = body
        self.pool = pool
        self.head = head
        self.arch, self.dataset, self.num_classes = "", "", head.out_features
        self.bit, self.weight_bit = 32, None
        self.time_steps, self.neuron, self.delay, self.start = 1, None, 0, None
        self.trainable_start = False

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]."""
        return self.readout(self.body(images))

    def readouts(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to the logits [T, B, classes] after the first T' = 1..T steps of output."""
        total, means = 0.0, []
        for steps, x in enumerate(self.body(images).unflatten(0, (self.time_steps, -1)), start=1):
            total = total + x
            means.append(self.pool(total / steps))
        return self.head(torch.stack(means))

    def sites(self) -> list[Site]:
        """Return the body step by step, so that a caller can stop at, or start from, any unit."""
        sites = []
        for name, module in self.body.named_children():
            if isinstance(module, BasicBlock):
                sites.append(Site(f"body.{name}.part1", module.part1, opens_block=True))
                sites.append(Site(f"body.{name}.part2", module.part2, joins=True))
            else:
                sites.append(Site(f"body.{name}", module))
        return sites

    def readout(self, x: Tensor) -> Tensor:
        """Map what the body puts out, [T·B, ...], to logits [B, classes]."""
        return self.head(self.pool(mean_over_time(x, self.time_steps)))

    def units(self) -> Iterator[tuple[str, Unit]]:
        """Yield (name, unit) in forward order."""
        for name, module in self.named_modules():
            if isinstance(module, Unit):
                yield name, module
