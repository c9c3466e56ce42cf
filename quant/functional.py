"""Projections onto quantization grids, with the straight-through gradients of the papers."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

PART = 2**18  # so many indices fit into a cache


def nearest_level(magnitude: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest of `levels` [L] (ascending) for each magnitude; a tie goes to the smaller level.

    O(N log L) time, O(N) memory: a binary search among the L - 1 midpoints, no [L, N] distances; the indices of one part
    at a time.
    """
    midpoints = (levels[1:] + levels[:-1]) / 2
    magnitude = magnitude.contiguous()
    nearest = torch.empty_like(magnitude, dtype=levels.dtype)
    for part, result in zip(magnitude.view(-1).split(PART), nearest.view(-1).split(PART), strict=True):
        torch.index_select(levels, 0, torch.bucketize(part, midpoints, out_int32=True), out=result)
    return nearest


class _WeightQuantization(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, clip: Tensor, levels: Tensor) -> Tensor:
        std, mean = torch.std_mean(weight)
        u = (weight - mean).div_(std * clip)
        quantized = nearest_level(u.abs().clamp_(max=1), levels).copysign_(u)
        # dα needs sign(u) where |u| > 1, else Q(u) - u: one tensor, since Q(u) is sign(u) out there. hardshrink keeps |u| > 1.
        ctx.save_for_backward(torch.sub(quantized, u.sub_(F.hardshrink(u, 1.0))), std)
        quantized.mul_(clip * (std / std))  # NaN instead of clips where std is 0 or NaN: both have no nearest level
        return quantized.view_as(quantized)  # see _ActivationQuantization

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        clip_slope, std = ctx.saved_tensors
        return grad / std, (grad * clip_slope).sum(), None


def quantize_weight(weight: Tensor, clip: Tensor, levels: Tensor) -> Tensor:
    """Return Wq = α · sign(u) · nearest_level(min(|u|, 1)), u = z/α, z = (W - mean W) / std W.

    Mean and unbiased std are over the whole tensor and constants in the backward pass; the normalisation is not
    undone, batch normalisation absorbs it. Gradients: dW = g / std (not clipped),
    dα = Σ g · (sign u where |u| > 1, else Q(u) - u).

    Args:
        weight: float weights of any shape, at least two different values.
        clip: α > 0, a scalar, in standard deviations.
        levels: [L] ascending in [0, 1], the first 0, the last 1.

    Source: APoT (Li et al., ICLR 2020), eq. 7-9 and section 3.3.
    """
    return _WeightQuantization.apply(weight, clip, levels)


def round_activation(x: Tensor, threshold: Tensor, steps: int) -> Tensor:
    """Return the values of `quantize_activation`, without its gradients; half precision is computed in float32."""
    return (_wide(x) / threshold).clamp_(0, 1).mul_(steps).round_().mul_(threshold / steps).to(x.dtype)


def activation_gradients(grad: Tensor, x: Tensor, threshold: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return (dx, dθ) of `quantize_activation` for the gradient of its output."""
    grad, u = _wide(grad), _wide(x) / threshold
    inside = _inside(grad, u)
    above = torch.ops.aten.threshold_backward(grad, u, 1.0)
    rounding_error = (u * steps).round_().div_(steps).sub_(u)
    return inside.to(x.dtype), rounding_error.mul_(inside).add_(above).sum()


def _inside(grad: Tensor, u: Tensor) -> Tensor:
    # The backward kernels of hardtanh (0 < u < limit) and threshold (u > 1) mask in one vectorised pass; boolean masks
    # took five times as long on a CPU. The limit is the next float after 1, since x = θ still has a gradient.
    return torch.ops.aten.hardtanh_backward(grad, u, 0.0, 1.0 + torch.finfo(u.dtype).eps)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _ActivationQuantization(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, threshold: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.steps = steps
        # A view, since torch 2.11 compiles a function whose result was last changed in place to one with gradients of 0.
        return round_activation(x, threshold, steps).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return *activation_gradients(grad, *ctx.saved_tensors, ctx.steps), None


def quantize_activation(x: Tensor, threshold: Tensor, steps: int) -> Tensor:
    """Return y = round(clamp(x/θ, 0, 1) · T) / T · θ, half to even; contains the ReLU.

    Gradients: dx = g where 0 < x <= θ, else 0; dθ = Σ g · (1 where x > θ, else y/θ - x/θ where x > 0).

    Args:
        x: pre-activations of any shape.
        threshold: θ > 0, a scalar.
        steps: T = 2^b - 1.

    Source: Fast-SNN (Hu et al., TPAMI 2023), section 4; learned clipping as in APoT, eq. 6.
    """
    return _ActivationQuantization.apply(x, threshold, steps)


class _RateReplacement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, current: Tensor, threshold: Tensor, spike_rate: Tensor) -> Tensor:
        ctx.save_for_backward(current, threshold)
        return spike_rate.view_as(spike_rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        current, threshold = ctx.saved_tensors
        return _inside(grad.to(current.dtype), current / threshold), None, None


def replace_activation(x: Tensor, threshold: Tensor, spike_rate: Tensor) -> Tensor:
    """Return `spike_rate` ȳ with the gradient of o = quantize_activation(x) by x: o + (ȳ - o).detach(), without computing o."""
    return _RateReplacement.apply(x, threshold, spike_rate)


def quantize_eight_bit(weight: Tensor) -> Tensor:
    """Return round(W / step) · step, step = max(W) / 127 (signed maximum, a constant); gradient straight through.

    No value is clamped: a minimum below -max(W) keeps its own integer. Where max(W) <= 0 there is no step and all values are
    NaN: a check here would make a GPU wait in every pass. `fault` and `check_values` name such a layer.
    """
    weight_range = weight.detach().max()
    step = torch.where(weight_range > 0, weight_range, torch.nan) / 127
    quantized = torch.round(weight.detach() / step) * step
    return weight + (quantized - weight).detach()
