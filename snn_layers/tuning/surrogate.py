"""Backpropagation through time: the integrate-and-fire neuron with a surrogate for the derivative of a spike."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..functional import HALF, integrate_and_fire

SURROGATES = ("rectangle", "triangle")


def surrogate_slope(distance: Tensor, surrogate: str = "rectangle") -> Tensor:
    """Return the surrogate for the derivative of a spike by the membrane, in 1/θ; its integral is 1.

        rectangle: 1 where |d| < 1/2, else 0
        triangle:  max(0, 1 - |d|)

    Args:
        distance: d, membrane minus the value at which it fires, in θ.

    Source: Wu et al., "Spatio-temporal backpropagation for training high-performance spiking neural networks", Frontiers in
    Neuroscience 2018 (rectangle); Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking
    neurons", NeurIPS 2018 (triangle).
    """
    distance = distance.abs()
    return torch.lt(distance, HALF, out=distance) if surrogate == "rectangle" else (1 - distance).clamp_(min=0)


def slopes_of(membrane: Tensor, threshold: Tensor, fired: Tensor | None, surrogate: str) -> Tensor:
    """Return the slope of a spike at a membrane [B, ...]; `fired` is n of a signed neuron, None of an unsigned one.

    Where n > 0 a spike may be taken back: the slopes around θ and around 0 add up, for the rectangle to an interval of 2θ.
    """
    slope = surrogate_slope(membrane / threshold - 1, surrogate)
    return slope if fired is None else slope + surrogate_slope(membrane / threshold, surrogate) * fired.clamp(max=1)


class _ThroughTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, current: Tensor, threshold: Tensor, signed: bool, delay: int, start: float,
                surrogate: str) -> Tensor:
        membranes: list[Tensor] = []
        spike_train = integrate_and_fire(current, threshold, signed, delay, start, membranes)
        fired, slopes = torch.zeros_like(current[0]), []
        for spikes, after in zip(spike_train, membranes[1:], strict=True):
            slope = slopes_of(after + spikes * threshold, threshold, fired if signed else None, surrogate)
            # Bytes instead of booleans, which compiled code on a CPU writes and reads one by one.
            slopes.append(slope.to(torch.uint8) if surrogate == "rectangle" else slope)
            fired = fired + spikes
        ctx.save_for_backward(threshold, *slopes)
        ctx.delay = delay
        return spike_train

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        threshold, *slopes = ctx.saved_tensors
        steps = len(slopes)
        carried, by_current = torch.zeros_like(grad[0]), []
        for step in reversed(range(steps)):
            # h is the membrane that fires, v = h - s·θ the membrane after the reset, and ds/dh = slope/θ:
            # dL/dh = slope · dL/ds / θ + (1 - slope) · dL/dv, and v is a summand of the next h.
            carried = torch.lerp(carried, grad[step] / threshold, slopes[step].to(grad.dtype))
            enters = min(step + ctx.delay, steps - 1)  # the last input that this step has waited for
            first = 0 if step == 0 else min(step - 1 + ctx.delay, steps - 1) + 1
            by_current += [carried] * (enters + 1 - first)
        return torch.stack(by_current[::-1]), None, None, None, None, None


def fire_through_time(current: Tensor, threshold: Tensor, signed: bool = True, delay: int = 0, start: float = HALF,
                      surrogate: str = "rectangle") -> Tensor:
    """Return the spike train of `integrate_and_fire`, with a gradient by the current; the reset is part of the graph.

        h_t = v_{t-1} + I_t,  s_t as in `integrate_and_fire`,  v_t = h_t - s_t·θ
        dL/dh_t = σ_t · dL/ds_t / θ + (1 - σ_t) · dL/dh_{t+1},  dL/dI_t = dL/dh_t,  σ_t = slope of `slopes_of`

    Kept for the backward pass is σ: one byte per neuron and step for the rectangle, else as many as `current` has.

    Args:
        current: [T, B, ...], float32 or float64.
        threshold: θ > 0, a scalar; it gets no gradient.
        signed, delay, start: as in `integrate_and_fire`.

    Returns:
        spike_train: [T, B, ...] in {-1, 0, 1}, of the dtype of `current`.

    Source: after Wu et al., Frontiers in Neuroscience 2018; the taking back of spikes is ours.
    """
    return _ThroughTime.apply(current, threshold.detach(), signed, delay, start, surrogate)
