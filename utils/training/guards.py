"""A loss that is no number: noticed before it spreads, and traced to the layer it comes from."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quant import fault
from snn_layers import RateNetwork


def is_sound(loss: Tensor, positive: list[Tensor]) -> bool:
    """Return whether the loss is finite and all clips are positive: one look at the device a step."""
    sound = torch.isfinite(loss.detach())
    return bool(sound & (torch.stack(positive).detach().min() > 0) if positive else sound)


def inner(network: nn.Module) -> nn.Module:
    """Return the network inside what averages gradients or runs on firing rates: its layers have the names that users know."""
    while isinstance(network, DistributedDataParallel | RateNetwork):
        network = network.module if isinstance(network, DistributedDataParallel) else network.snn
    return network


@torch.no_grad()
def first_fault(network: nn.Module, images: Tensor) -> str:
    """Say where NaN or infinity comes from: the values of the network, the images, or the first layer that puts it out."""
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
    return f"{culprits[0]} is the first layer to put out NaN or infinity" if culprits else "it overflows behind the last layer"
