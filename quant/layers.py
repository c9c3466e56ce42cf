"""Quantized layers: thin modules over quant.functional that share the float layer's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import quantize_activation, quantize_eight_bit, quantize_weight
from .levels import apot_grid, time_steps


class APoTWeight(nn.Module):
    """Weight quantizer with b-bit additive-powers-of-two levels and a learned clip α (in standard deviations)."""

    def __init__(self, bits: int, clip: float = 3.0):
        super().__init__()
        numerators, self.denominator = apot_grid(bits)
        self.bits = bits
        self.alpha = nn.Parameter(torch.tensor(clip))
        # Integers, so that .double() yields float64 levels rather than rounded float32 ones.
        self.register_buffer("numerators", torch.tensor(numerators), persistent=False)

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return the grid [L] in [0, 1], ascending."""
        return self.numerators.to(dtype) / self.denominator

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, of the same shape."""
        return quantize_weight(weight, self.alpha, self.levels(weight.dtype))


class EightBitWeight(nn.Module):
    """Weight quantizer of the first convolution and the last linear layer."""

    bits = 8

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, of the same shape."""
        return quantize_eight_bit(weight)


class QuantConv2d(nn.Conv2d):
    """Conv2d whose weight passes a quantizer in every forward pass, or once: see `quantized_once`."""

    frozen: Tensor | None = None

    @classmethod
    def from_float(cls, conv: nn.Conv2d, quantizer: nn.Module) -> "QuantConv2d":
        """Return a quantized layer that shares the parameters of `conv`."""
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                    conv.groups, conv.bias is not None, conv.padding_mode, device="meta")
        layer.weight_quantizer = quantizer.to(conv.weight.device)
        return _adopt(layer, conv)

    def to_float(self) -> nn.Conv2d:
        """Return a float layer that shares the parameters."""
        layer = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
                          self.groups, self.bias is not None, self.padding_mode, device="meta")
        return _adopt(layer, self)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W] to [B, out_channels, H', W']."""
        return self._conv_forward(x, _quantized(self), self.bias)


class QuantLinear(nn.Linear):
    """Linear layer whose weight passes a quantizer in every forward pass, or once: see `quantized_once`."""

    frozen: Tensor | None = None

    @classmethod
    def from_float(cls, linear: nn.Linear, quantizer: nn.Module) -> "QuantLinear":
        """Return a quantized layer that shares the parameters of `linear`."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight_quantizer = quantizer.to(linear.weight.device)
        return _adopt(layer, linear)

    def to_float(self) -> nn.Linear:
        """Return a float layer that shares the parameters."""
        return _adopt(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"), self)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_features] to [B, out_features]."""
        return F.linear(x, _quantized(self), self.bias)


def _adopt(layer: nn.Module, source: nn.Module) -> nn.Module:
    layer.weight, layer.bias = source.weight, source.bias
    return layer.train(source.training)


def _quantized(layer: QuantConv2d | QuantLinear) -> Tensor:
    return layer.weight_quantizer(layer.weight) if layer.frozen is None else layer.frozen


@contextmanager
def quantized_once(network: nn.Module) -> Iterator[None]:
    """Quantize each weight once for all forward passes inside, which must not train the network."""
    layers = [module for module in network.modules() if isinstance(module, QuantConv2d | QuantLinear)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.frozen = layer.weight_quantizer(layer.weight)
        yield
    finally:
        for layer in layers:
            layer.frozen = None


class QuantReLU(nn.Module):
    """ReLU clipped at a learned threshold θ and rounded to T = 2^b - 1 uniform steps."""

    def __init__(self, bits: int, threshold: float):
        super().__init__()
        self.bits = bits
        self.time_steps = time_steps(bits)
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Return values in {0, θ/T, ..., θ}, of the shape of x."""
        return quantize_activation(x, self.threshold, self.time_steps)

    def extra_repr(self) -> str:
        """Describe bits and threshold."""
        return f"bits={self.bits}, threshold={self.threshold.item():.4g}"
