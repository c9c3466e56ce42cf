"""Values with which a network computes nonsense without an error, since no quantizer, neuron or BN can work with them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models import Network

from .layers import APoTWeight, EightBitWeight
from .scalars import scalars

SILENT = 1e-6  # a BN channel of variance 0 has seen only zeros if its mean less the bias is at most this


@torch.no_grad()
def fault(network: nn.Module, statistics: bool = True) -> str | None:
    """Return the first fault of a network's values, with the layer's name; None for a sound one.

    Without `statistics`, BN statistics are left out: a forward pass in training spoils them, whatever the cause.

    Faults are NaN and infinity, thresholds θ and clips α that are not positive, weights to quantize without variance (APoT)
    or without a positive value (8 bits), BN variances below 0, and of 0 where the channel's input was not always 0.
    """
    return next(_faults(network, statistics), None)


def check_values(network: nn.Module) -> None:
    """Raise ValueError if the network has a fault; names the layer."""
    found = fault(network)
    if found is not None:
        raise ValueError(f"{found}: training diverged, or the file is damaged")


def _faults(network: nn.Module, statistics: bool) -> Iterator[str]:
    for name, tensor in network.state_dict().items() if statistics else network.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            yield f"{name} holds NaN or infinity"
    for name, scalar in scalars(network).items():
        if not scalar > 0:
            yield f"{name} is {scalar.item():g}, but must be positive"

    def read_bias(norm: str, channels: int) -> Tensor | None:
        path = network.graph.norms.get(norm) if isinstance(network, Network) else None
        bias = None if path is None else network.layer(path).bias
        return bias if bias is not None and len(bias) == channels else None  # a linear layer of tokens has other channels

    for name, module in network.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(quantizer, APoTWeight) and not module.weight.std() > 0:
            yield f"{name}.weight has no variance, all its values are {module.weight.flatten()[0]:g}"
        if isinstance(quantizer, EightBitWeight) and not module.weight.max() > 0:
            yield f"{name}.weight has the maximum {module.weight.max():g}, but 8 bits need a positive one"
        if statistics and isinstance(getattr(module, "running_var", None), Tensor):
            yield from _variance_faults(name, module, read_bias(name, module.running_var.shape[-1]))


def _variance_faults(name: str, bn: nn.Module, bias: Tensor | None) -> Iterator[str]:
    """Yield the faults of BN with statistics [C], or [T, C] of each time step."""
    mean, variance = (values.view(-1, values.shape[-1]) for values in (bn.running_mean, bn.running_var))
    if (variance < 0).any():
        yield f"{name} has the variance {variance.min():g} in channel {variance.argmin() % variance.shape[1]}"
    # A channel whose weights all became 0 is harmless, and not rare at 2 bits: its variance fades away as its mean does. So is a
    # time step before the first spikes.
    silent = (mean - (0 if bias is None else bias)).abs() <= SILENT
    zero = variance == 0
    spoiled = zero if zero.all() else zero & ~silent
    if spoiled.any():
        yield f"{name} has the variance 0 in channel {spoiled.nonzero()[0, 1]}"
