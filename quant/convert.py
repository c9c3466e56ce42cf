"""The first swap: float layers for quantized ones."""

import warnings
from collections.abc import Callable
from math import inf

import torch
from torch import nn

from models import Network, plain_kind

from .layers import QUANTIZED, APoTWeight, EightBitWeight, Quantized, QuantReLU
from .levels import FLOAT_BITS, check_bits
from .scalars import scalars

Filter = Callable[[nn.Module, str], bool]


def swap_(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace, recursively and in place, each child for which `replacement` returns a module."""
    for name, child in module.named_children():
        new = replacement(child)
        if new is None:
            swap_(child, replacement)
        else:
            module._modules[name] = new  # an attribute of a network may have the same name


def quantize_(network: nn.Module, bit: int, weight_bit: int | None = None, filter: Filter | None = None) -> Network:
    """Return a float network with its layers swapped for `bit`-bit ones.

    Names are kept. The given network stays usable: both share their parameters, so that it sees what the other learns. Weights
    of convolutions and linear layers in the spiking region get `bit` bits, those before the first and after the last activation
    8, unless a recipe says otherwise; a transposed convolution keeps float ones, and a warning says so.
    Where the recipe says so, the bias of a convolution before a batch normalisation moves into the running mean:
    BN(Wx + b; μ) = BN(Wx; μ - b). New parameters are the clips `weight_quantizer.alpha` of a layer and the `threshold` of an
    activation.

    Args:
        network: any module that `Network` takes.
        bit: 2 to 8; 32 leaves the network as it is.
        weight_bit: bits of the hidden weights instead of the recipe's; below 32 the ends get 8 bits, 32 keeps all weights
            float.
        filter: called with each layer that has weights and its name; False keeps that layer float.

    Raises:
        ValueError: bits out of range, a network that is quantized or spiking already, or one that `Network` refuses.
    """
    check_bits(bit)
    network = network if isinstance(network, Network) else Network(network)
    if network.bit != FLOAT_BITS or network.neuron is not None:
        raise ValueError(f"the network is {network.bit}-bit already: quantize_ takes a float network")
    if bit == FLOAT_BITS:
        if weight_bit not in (None, FLOAT_BITS):
            raise ValueError(f"weight_bit is {weight_bit} but bit is 32: quantized weights need quantized activations")
        return network
    recipe = network.facts.recipe
    hidden, ends = bit if recipe.hidden else FLOAT_BITS, recipe.ends
    if weight_bit is not None:
        hidden, ends = check_bits(weight_bit, "weight_bit"), weight_bit != FLOAT_BITS
    network = network.copy(bit=bit, weight_bit=weight_bit)
    if recipe.fold:
        fold_biases_(network)
    device = next((tensor.device for tensor in network.parameters()), None)
    for path in network.graph.activations.values():
        relu = network.layer(path)
        quantized = QuantReLU(bit, recipe.threshold, getattr(relu, "max_val", inf))
        network.set_layer(path, quantized.to(device).train(relu.training))
    for name in network.graph.flow.functional_weights(network.tensor) if hidden != FLOAT_BITS or ends else ():
        warnings.warn(f"{name} keeps float weights: a function reads it, and only layers of torch.nn are quantized", stacklevel=2)
    for path, region in network.graph.regions.items():
        layer, wanted = network.layer(path), hidden != FLOAT_BITS if region == "spiking" else ends
        if not wanted or (filter is not None and not filter(layer, path)):
            continue
        if (kind := plain_kind(layer)) not in QUANTIZED:
            warnings.warn(f"{path} keeps float weights: of a {type(layer).__name__} none are quantized", stacklevel=2)
            continue
        quantizer = APoTWeight(hidden) if region == "spiking" else EightBitWeight()
        network.set_layer(path, QUANTIZED[kind].from_float(layer, quantizer))
    return network


def dequantize_(network: Network) -> Network:
    """Undo `quantize_`: return a network of float layers that share the parameters; clips and thresholds are dropped.

    Raises:
        ValueError: a spiking network.
    """
    if network.neuron is not None:
        raise ValueError("the network spikes: take the quantized one that it came from")

    def replacement(module: nn.Module) -> nn.Module | None:
        if isinstance(module, QuantReLU):
            relu = nn.ReLU() if module.clip == inf else nn.Hardtanh(0.0, module.clip)
            return relu.train(module.training)
        return module.to_float() if isinstance(module, Quantized) else None

    network = network.copy(bit=FLOAT_BITS, weight_bit=None)
    swap_(network, replacement)
    return network


@torch.no_grad()
def requantize_(network: Network, bit: int, weight_bit: int | None = None) -> Network:
    """Return a float or quantized network at another bit-width; parameters are shared, clips and thresholds keep their values.

    So do the biases that calibration has given to activations.

    Raises:
        ValueError: bits out of range, a spiking network, or a quantized one and 32 bits.
    """
    if bit == FLOAT_BITS and network.bit != FLOAT_BITS:
        raise ValueError(f"the network is {network.bit}-bit: a float network starts from a float one")
    learned = scalars(network)
    biases = {path: getattr(network.layer(path), "bias", None) for path in network.graph.activations.values()}
    network = quantize_(dequantize_(network), bit, weight_bit)
    for name, scalar in scalars(network).items():
        if name in learned:
            scalar.copy_(learned[name])
    for path, bias in biases.items():
        if bias is not None:
            network.layer(path).bias = bias
    return network


@torch.no_grad()
def fold_biases_(network: Network) -> None:
    """Move, in place, the bias of each convolution that only a batch normalisation reads into its running mean."""
    for norm, path in network.graph.norms.items():
        layer, bn = network.layer(path), network.layer(norm)
        if not isinstance(layer, nn.Linear) and layer.bias is not None:
            bn.running_mean -= layer.bias
            layer.bias = None
