"""A loss that is NaN or infinite: noted before it spreads, and traced to the layer that it comes from."""

from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quant import fault
from snn_layers import RateNetwork, ThroughTime


def is_sound(loss: Tensor, positive: list[Tensor]) -> Tensor:
    """Return, on the device, whether the loss is finite and all clips are positive."""
    sound = torch.isfinite(loss.detach())
    return sound & (torch.stack(positive).detach().min() > 0) if positive else sound


class Note:
    """A note on the device about the batches: the first unsound one, its loss and its images.

    Attributes:
        unsound: 1 from the first unsound batch of any process on, else 0.
        images: of that batch, at most as many as the first one had.
    """

    def __init__(self, device: torch.device):
        self.unsound, self.own = (torch.zeros((), device=device) for _ in range(2))
        self.batch, self.loss = (torch.zeros((), device=device) for _ in range(2))
        self.images: Tensor | None = None

    @torch.no_grad()
    def take(self, images: Tensor, loss: Tensor, is_sound: Tensor) -> None:
        """Note a batch."""
        if self.images is None:  # once for all, since a captured step writes to this address
            self.images = torch.zeros_like(images)
        rows = min(len(images), len(self.images))
        kept, fresh = self.images[:rows], self.own == 0  # once unsound, everything stays as it is
        kept.copy_(torch.where(fresh, images[:rows], kept))
        self.loss.copy_(torch.where(fresh, loss, self.loss))
        sound_so_far = is_sound & fresh
        self.own.copy_(~sound_so_far)
        self.batch.add_(sound_so_far)
        self.unsound.copy_(self.own)
        if dist.is_initialized():
            dist.all_reduce(self.unsound, dist.ReduceOp.MAX)

    def read(self) -> list[float]:
        """Wait for the device and return [unsound, own, batch, loss]."""
        return torch.stack([self.unsound, self.own, self.batch, self.loss]).tolist()

    def begin(self) -> None:
        """Count batches from 0 again."""
        self.batch.zero_()


def inner(network: nn.Module) -> nn.Module:
    """Return the network without the wrappers that average gradients or unroll spikes: its layers have their usual names."""
    while isinstance(network, DistributedDataParallel | RateNetwork | ThroughTime):
        network = network.module if isinstance(network, DistributedDataParallel) else network.snn
    return network


@torch.no_grad()
def first_fault(network: nn.Module, images: Tensor) -> str:
    """Return where NaN or infinity comes from: the values of the network, the images, or the output of the first such layer."""
    found = fault(inner(network), statistics=False)
    if found is not None or not torch.isfinite(images).all():
        return found or "the images hold NaN or infinity"
    culprits: list[str] = []

    def look(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            culprits.append(name)

    with ExitStack() as stack:
        for name, module in inner(network).named_modules():
            hook = module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
            stack.callback(hook.remove)
        inner(network)(images)
    if not culprits:
        return "it overflows after the last layer"
    return f"{culprits[0]} is the first layer whose output holds NaN or infinity"
