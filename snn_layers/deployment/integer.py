"""Convolutions of spikes with integer weights, in float32 and in 8-bit arithmetic."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant import APoTWeight

EXACT = 2**24  # integers up to here are exact in float32
LARGEST = 127  # weight in a signed byte


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over an image; `pads` (left, right, top, bottom) come first, where `padding` cannot express them."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    pads: tuple[int, ...] = ()
    mode: str = "constant"

    @classmethod
    def of(cls, layer: nn.Module) -> "Geometry":
        """Return the geometry of a Conv2d; a Conv1d has one row, and a linear layer is a 1x1 convolution."""
        if isinstance(layer, nn.Linear):
            return cls()
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        one, none = ((1,), (0, 0)) if isinstance(layer, nn.Conv1d) else ((), ())
        pads = (*layer._reversed_padding_repeated_twice, *none)
        fits = mode == "constant" and pads[::2] == pads[1::2]
        padding, pads = (pads[::-2], ()) if fits else ((0, 0), pads)
        return cls((*one, *layer.stride), padding, (*one, *layer.dilation), layer.groups, pads, mode)

    def padded(self, x: Tensor, zero: int = 0) -> Tensor:
        """Return x [B, C, H, W] with `pads`; `zero` stands for 0."""
        if not self.pads:
            return x
        return F.pad(x, self.pads, self.mode, zero if self.mode == "constant" else None)

    def is_product(self, weight: Tensor) -> bool:
        """Return whether the convolution is one product of matrices, 1x1 at each place."""
        return self == Geometry() and weight.shape[2:] == (1, 1)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of x [B, C, H, W] in floating point."""
        return F.conv2d(self.padded(x), weight, None, self.stride, self.padding, self.dilation, self.groups)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `convolve`; a product of matrices as such, which is several times as fast where there are few places."""
        if not self.is_product(weight):
            return self.convolve(x, weight)
        return F.linear(x.movedim(1, -1), weight[:, :, 0, 0]).movedim(-1, 1)


class FloatConv(nn.Module):
    """Convolution in float32. With spikes and integer weights it is exact in any order of summation, see `Term.exact`.

    On a GPU too: TF32's 11 significant bits hold spikes and numerators up to 2,048, and rounding removes the errors of cuDNN's
    algorithms on transformed values (Winograd, FFT).

    Args:
        total: see `IntegerConv`.
        integral: the weights are integers, and so are the sums.
    """

    zero, dtype = 0, torch.float32

    def __init__(self, weight: Tensor, geometry: Geometry, total: int = 1, integral: bool = False):
        super().__init__()
        self.integral = integral
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.geometry = geometry

    def forward(self, spikes: Tensor) -> Tensor:
        """Map spikes [T·B, C, H, W], bytes or not, to accumulators [T·B, C', H', W'] float32."""
        sums = self.geometry.multiply(spikes.float(), self.weight)
        return sums.round_() if self.integral and sums.is_cuda else sums


class IntegerConv(nn.Module):
    """Convolution of bytes: spikes + 1 as uint8 with zero point 1, weights as int8, sums in int32, output as float32.

    Exact: float32 holds the sums, see `Term.exact`, and a processor that adds pairs of products in 16 bits has at most
    2 · 2 · 64 · 127 in them. Runs on CPUs, by oneDNN.

    Args:
        total: spikes that average pooling adds up to one value; it stands for 0.

    Raises:
        ValueError: weights that are not integers within ±127.
    """

    zero, dtype = 1, torch.uint8

    def __init__(self, weight: Tensor, geometry: Geometry, total: int = 1, integral: bool = True):
        super().__init__()
        if not torch.equal(weight, weight.round()) or weight.abs().max() > LARGEST:
            raise ValueError("the integer path needs hidden weights of 2 to 6 APoT bits, integers within 127: use the float path")
        self.geometry, self.point = geometry, self.zero * total
        self.places = list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups
        self.scale = torch.ones(len(weight))
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.product, weight = geometry.is_product(weight), weight.to(torch.int8)
        self.packed = (torch.ops.onednn.qlinear_prepack(weight.flatten(1), None) if self.product else
                       torch.ops.onednn.qconv_prepack(weight, self.scale, 1.0, self.point, *self.places, None))

    def forward(self, spikes: Tensor) -> Tensor:
        """Map spikes + 1 [T·B, C, H, W] uint8 to accumulators [T·B, C', H', W'] float32."""
        if self.product:
            return torch.ops.onednn.qlinear_pointwise(spikes.movedim(1, -1), 1.0, self.point, self.packed, self.scale,
                                                      self.zero_points, None, 1.0, 0, torch.float32, "none", [], "").movedim(-1, 1)
        spikes = self.geometry.padded(spikes, self.point)
        return torch.ops.onednn.qconv2d_pointwise(spikes, 1.0, self.point, self.packed, self.scale, self.zero_points, None,
                                                  *self.places, 1.0, 0, torch.float32, "none", [], "")


Convolution = type[FloatConv] | type[IntegerConv]


def fits_bytes(layer: nn.Module) -> bool:
    """Return whether the weights are integers within ±127 times a step."""
    quantizer = getattr(layer, "weight_quantizer", None)
    return isinstance(quantizer, APoTWeight) and quantizer.denominator <= LARGEST


def on_places(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a Conv2d to x [B, C, H, W]; one made of a linear layer or a Conv1d also to x [B, C] or [B, C, L]."""
    if isinstance(conv, nn.Identity) or x.dim() == 4:
        return conv(x)
    return conv(x[:, :, None]).squeeze(2) if x.dim() == 3 else conv(x[:, :, None, None]).flatten(1)
