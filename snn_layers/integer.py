"""Convolutions of spikes with integer weights in 8-bit arithmetic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 2**24  # integers up to here are exact in float32
LARGEST = 127  # weight in a signed byte


class FloatConv(nn.Module):
    """Convolution in float32. Of spikes with integer weights it is exact, in any order of summation, below 2^24.

    On a GPU TF32 stays exact too: its 11 significant bits hold spikes and numerators up to 2,048, and it sums in float32.
    """

    zero, dtype = 0, torch.float32

    def __init__(self, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]):
        super().__init__()
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.stride, self.padding = stride, padding

    def forward(self, spikes: Tensor) -> Tensor:
        """Map spikes [T·B, C, H, W], bytes or not, to accumulators [T·B, C', H', W'] float32."""
        return F.conv2d(spikes.float(), self.weight, None, self.stride, self.padding)


class IntegerConv(nn.Module):
    """Convolution of bytes: spikes + 1 as uint8 with zero point 1, weights as int8, sums in int32, put out as float32.

    Exact: the sums are below 2^24, and where a processor adds pairs of products in 16 bits, they are at most
    2 · 2 · 127. Runs on CPUs, by oneDNN.

    Raises:
        ValueError: weights that are no integers within ±127, or sums beyond 2^24.
    """

    zero, dtype = 1, torch.uint8

    def __init__(self, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]):
        super().__init__()
        if not torch.equal(weight, weight.round()) or weight.abs().max() > LARGEST:
            raise ValueError("the integer path needs hidden weights of 2 to 6 APoT bits, integers within 127: use the float path")
        if weight.abs().sum((1, 2, 3)).max() >= EXACT:
            raise ValueError("a sum of spikes could exceed 2^24: use the float path")
        self.stride, self.padding = list(stride), list(padding)
        self.scale = torch.ones(len(weight))
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), self.scale, 1.0, self.zero, self.stride, self.padding,
                                                     [1, 1], 1, None)

    def forward(self, spikes: Tensor) -> Tensor:
        """Map spikes + 1 [T·B, C, H, W] uint8 to accumulators [T·B, C', H', W'] float32."""
        return torch.ops.onednn.qconv2d_pointwise(spikes, 1.0, self.zero, self.packed, self.scale, self.zero_points, None,
                                                  self.stride, self.padding, [1, 1], 1, 1.0, 0, torch.float32, "none", [], "")
