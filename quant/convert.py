"""The first swap: float layers for quantized ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models import Network, recipe

from .layers import APoTWeight, EightBitWeight, QuantConv2d, QuantLinear, QuantReLU
from .levels import FLOAT_BITS, check_bits


@dataclass(frozen=True)
class QuantConfig:
    """Precision of each part; None keeps it float. `threshold` is the initial clip of the activations."""

    activation_bits: int
    hidden_bits: int | None
    ends_eight_bit: bool
    threshold: float


def swap_(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace, recursively and in place, each child for which `replacement` returns a module."""
    for name, child in module.named_children():
        new = replacement(child)
        if new is None:
            swap_(child, replacement)
        else:
            setattr(module, name, new)


def config_for(network: Network, bit: int, weight_bit: int | None = None) -> QuantConfig:
    """Return the published recipe at `bit` bits; `weight_bit` overrides it for the weights (32: all float)."""
    published = recipe(network.arch, network.dataset)
    if weight_bit is None:
        return QuantConfig(bit, bit if published.hidden else None, published.ends, published.threshold)
    quantized = check_bits(weight_bit, "weight_bit") != FLOAT_BITS
    return QuantConfig(bit, weight_bit if quantized else None, quantized, published.threshold)


def quantize_(network: Network, bit: int, weight_bit: int | None = None) -> Network:
    """Swap, in place, the layers of a float network for `bit`-bit ones; parameters are shared, names are kept.

    A convolution's bias is removed: BN behind it subtracts it again, so it moves into BN's running mean. New parameters
    are the clips `conv.weight_quantizer.alpha` and the thresholds `activation.threshold`.

    Args:
        bit: 2 to 8; 32 leaves the network as it is.
        weight_bit: bits of the hidden weights where the recipe of the architecture is to be overridden; below 32 the
            ends get 8 bits, 32 keeps all weights float.

    Raises:
        ValueError: bits out of range, or a network that is quantized or spiking already.
    """
    check_bits(bit)
    if network.bit != FLOAT_BITS or network.neuron is not None:
        raise ValueError(f"the network is {network.bit}-bit already: quantize_ takes a float network")
    if bit == FLOAT_BITS:
        if weight_bit not in (None, FLOAT_BITS):
            raise ValueError(f"weight_bit is {weight_bit} but bit is 32: quantized weights need quantized activations")
        return network
    config = config_for(network, bit, weight_bit)
    for _, unit in network.units():
        fold_conv_bias_(unit)
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = (weighted[0], weighted[-1])

    def replacement(module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.ReLU):
            relu = QuantReLU(config.activation_bits, config.threshold)
            return relu.to(weighted[0].weight.device).train(module.training)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        if any(module is end for end in ends):
            quantizer = EightBitWeight() if config.ends_eight_bit else None
        else:
            quantizer = APoTWeight(config.hidden_bits) if config.hidden_bits else None
        if quantizer is None:
            return None
        layer = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
        return layer.from_float(module, quantizer)

    swap_(network, replacement)
    network.bit, network.weight_bit = bit, weight_bit
    return network


def dequantize_(network: Network) -> Network:
    """Undo `quantize_` in place: float layers that share the parameters; clips and thresholds are dropped.

    Raises:
        ValueError: a spiking network.
    """
    if network.neuron is not None:
        raise ValueError("the network spikes: take the quantized one that it came from")

    def replacement(module: nn.Module) -> nn.Module | None:
        if isinstance(module, QuantReLU):
            return nn.ReLU().train(module.training)
        return module.to_float() if isinstance(module, QuantConv2d | QuantLinear) else None

    swap_(network, replacement)
    network.bit, network.weight_bit = FLOAT_BITS, None
    return network


@torch.no_grad()
def requantize_(network: Network, bit: int, weight_bit: int | None = None) -> Network:
    """Take a float or quantized network, in place, to another bit-width; clips and thresholds that go on are kept.

    Raises:
        ValueError: bits out of range, a spiking network, or a quantized one that is to become float.
    """
    if bit == FLOAT_BITS and network.bit != FLOAT_BITS:
        raise ValueError(f"the network is {network.bit}-bit: a float network starts from a float one")
    clips = {name: p for name, p in network.named_parameters() if name.endswith((".alpha", ".threshold"))}
    quantize_(dequantize_(network), bit, weight_bit)
    for name, parameter in network.named_parameters():
        if name in clips:
            parameter.copy_(clips[name])
    return network


@torch.no_grad()
def fold_conv_bias_(unit: nn.Module) -> None:
    """Move a convolution's bias b into BN's running mean: BN(Wx + b; μ) = BN(Wx; μ - b)."""
    if isinstance(unit.conv, nn.Conv2d) and unit.conv.bias is not None:
        unit.bn.running_mean -= unit.conv.bias
        unit.conv.bias = None
