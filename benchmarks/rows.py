"""What the parts of the benchmark share: a row of the result, images, networks."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

import models
from models import Network
from quant import fit_, quantize_
from utils.checkpoints.checkpoint import load_network

from .timing import Times

BATCH = 128


@dataclass(frozen=True)
class Row:
    """A ratio (median and quartiles) beside its target; `at_most` says on which side of the target it should lie."""

    what: str
    ratio: float
    low: float
    high: float
    target: float | None = None
    stretch: float | None = None
    at_most: bool = True
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def met(self) -> bool:
        """Return whether the target is met."""
        return self.target is None or (self.ratio <= self.target if self.at_most else self.ratio >= self.target)


def row(times: Times, what: str, name: str, base: str, target: float | None = None, stretch: float | None = None,
        at_most: bool = True) -> Row:
    """Return the row of name / base."""
    return Row(what, *times.ratio(name, base), target, stretch, at_most, (times.median(name), times.median(base)))


def noise(count: int) -> Tensor:
    """Return images [count, 3, 32, 32], channels last."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def networks(arch: str, bit: int) -> tuple[Network, Network]:
    """Return a float network and a quantized one of the same architecture, in eval mode, channels last."""
    torch.manual_seed(0)
    plain = models.build(arch)
    if arch == "resnet20":
        ann = load_network(f"result/published/resnet20_{bit}bit.pth.tar")
    else:
        ann = fit_(quantize_(copy.deepcopy(plain), bit), noise(32))
    return tuple(network.eval().to(memory_format=torch.channels_last) for network in (plain, ann))
