"""Units of a deployed network that run as one kernel on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..integer import EXACT, LARGEST, FloatConv, Geometry


class KernelConv(FloatConv):
    """A convolution whose unit may run as one kernel on bytes. As it stands it is the way of units that may not."""

    zero, dtype = 0, torch.int8


def kernels_run_on(device: torch.device) -> bool:
    """Return whether Triton is there, and a GPU that multiplies bytes (8.0 and later)."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits_kernel(convs: list[FloatConv], time_steps: int) -> bool:
    """Return whether the kernel takes a unit's convolutions: bytes, whose sums over time are exact in float32, and zeros around."""
    return all(
        torch.equal(conv.weight, conv.weight.round()) and conv.weight.abs().max() <= LARGEST
        and time_steps * conv.weight.abs().sum((1, 2, 3)).max() < EXACT
        and conv.geometry.mode == "constant" and conv.geometry.groups == convs[0].geometry.groups for conv in convs)


class KernelUnit(nn.Module):
    """A hidden unit's constants as the kernel reads them, and the call; see `launch.SpikingConvolution`.

    Args:
        convs: the unit's convolution, and that of its shortcut if it has one.
        levels: see `launch.neuron_levels`.
        neuron: time steps, sign and delay.
    """

    def __init__(self, convs: list[FloatConv], levels: Tensor, neuron: nn.Module):
        super().__init__()
        from .launch import SpikingConvolution, pack

        weights = [pack(conv.weight, conv.geometry) for conv in convs]
        self.unit = SpikingConvolution(weights[0], levels, neuron.time_steps, neuron.signed, neuron.delay, *weights[1:])
        self.register_buffer("levels", levels)
        for name, weight in zip(("weight", "side"), weights, strict=False):
            self.register_buffer(name, weight.packed)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "KernelUnit":
        super()._apply(function, recurse)  # a move to another device
        side = None if self.unit.side is None else replace(self.unit.side, packed=self.side)
        self.unit = replace(self.unit, weights=replace(self.unit.weights, packed=self.weight), constants=self.levels, side=side)
        return self

    def forward(self, spikes: Tensor, second: Tensor | None) -> Tensor:
        """Map spikes [T·B, C, H, W] int8, and a residual, to spikes [T·B, C', H', W'] int8."""
        from .launch import spiking_convolution

        return spiking_convolution(spikes, self.unit, second)


class KernelEncoder(nn.Module):
    """The first unit's constants as its kernel reads them, and the call; see `encoding.encode_images`."""

    def __init__(self, weight: Tensor, bias: Tensor, geometry: Geometry, threshold: Tensor, neuron: nn.Module):
        super().__init__()
        from .encoding import pack_encoding

        self.weights = pack_encoding(weight, geometry)
        self.register_buffer("weight", self.weights.packed)
        self.register_buffer("bias", bias)
        self.register_buffer("threshold", threshold.detach().double())
        self.neuron = (neuron.time_steps, neuron.signed, neuron.delay, neuron.start)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to spikes [T·B, C', H', W'] int8."""
        from .encoding import encode_images

        return encode_images(images, replace(self.weights, packed=self.weight), self.bias, self.threshold, *self.neuron)
