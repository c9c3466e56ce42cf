"""Quantized layers: thin modules over quant.functional that share the float layer's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import quantize_activation, quantize_eight_bit, quantize_weight
from .levels import apot_grid, time_steps

FIRST_CLIP = 3.0  # α at the start, in standard deviations


class APoTWeight(nn.Module):
    """Weight quantizer with b-bit additive-powers-of-two levels and a learned clip α (in standard deviations)."""

    learned_scalar = "alpha"

    def __init__(self, bits: int):
        super().__init__()
        numerators, self.denominator = apot_grid(bits)
        self.bits = bits
        self.alpha = nn.Parameter(torch.tensor(FIRST_CLIP))
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


class Quantized:
    """A layer whose weight is quantized in every forward pass, or once: see `quantized_once`."""

    frozen: Tensor | None = None

    @classmethod
    def from_float(cls, layer: nn.Module, quantizer: nn.Module) -> nn.Module:
        """Return a quantized layer that shares the parameters of `layer`."""
        quantized = _adopt(cls, layer)
        quantized.weight_quantizer = quantizer.to(layer.weight.device)
        return quantized

    def to_float(self) -> nn.Module:
        """Return a float layer that shares the parameters."""
        layer = _adopt(next(kind for kind, quantized in QUANTIZED.items() if type(self) is quantized), self)
        del layer.weight_quantizer  # of the float layer alone: `_adopt` copies the dictionary that holds it
        return layer


class _QuantConv(Quantized):
    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_channels, ...] to [B, out_channels, ...]."""
        return self._conv_forward(x, _quantized(self), self.bias)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """A quantized Conv1d."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """A quantized Conv2d."""


class QuantConv3d(_QuantConv, nn.Conv3d):
    """A quantized Conv3d."""


class QuantLinear(Quantized, nn.Linear):
    """A quantized linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, ..., in_features] to [B, ..., out_features]."""
        return F.linear(x, _quantized(self), self.bias)


QUANTIZED = {nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.Conv3d: QuantConv3d, nn.Linear: QuantLinear}


def _adopt(kind: type[nn.Module], source: nn.Module) -> nn.Module:
    """Return a layer of another class with the attributes of `source`, and its Parameter objects."""
    layer = kind.__new__(kind)
    layer.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in source.__dict__.items()}
    return layer


def _quantized(layer: Quantized) -> Tensor:
    return layer.weight_quantizer(layer.weight) if layer.frozen is None else layer.frozen


@contextmanager
def quantized_once(network: nn.Module) -> Iterator[None]:
    """Quantize each weight once for all forward passes inside, which must not train the network."""
    layers = [module for module in network.modules() if isinstance(module, Quantized)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.frozen = layer.weight_quantizer(layer.weight)
        yield
    finally:
        for layer in layers:
            layer.frozen = None


def shifted(x: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [B, C, ...] + bias [C]."""
    return x if bias is None else x + bias.view(-1, *[1] * (x.dim() - 2))


class QuantReLU(nn.Module):
    """ReLU clipped at a learned threshold θ and rounded to T = 2^b - 1 uniform steps.

    Args:
        threshold: θ at the start.
        clip: where the float activation was clipped; bounds θ when it is fitted.
        bias: [C], added by calibration where no layer has a bias for it.
    """

    learned_scalar = "threshold"

    def __init__(self, bits: int, threshold: float, clip: float = inf, bias: nn.Parameter | None = None):
        super().__init__()
        self.bits, self.clip = bits, clip
        self.time_steps = time_steps(bits)
        self.threshold = nn.Parameter(torch.tensor(float(min(threshold, clip))))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return values in {0, θ/T, ..., θ}, of the shape of x."""
        return quantize_activation(shifted(x, self.bias), self.threshold, self.time_steps)

    def extra_repr(self) -> str:
        """Describe bits and threshold."""
        return f"bits={self.bits}, threshold={self.threshold.item():.4g}"
