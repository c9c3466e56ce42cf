"""The integrate-and-fire equation on accumulators in one pass, which a deployed network runs between two convolutions."""

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..functional import HALF, RETRACTION, rounded
from ..native import calls
from ..neuron import IFNeuron
from .integer import Convolution

MANTISSA = 24  # significant bits of a float32
SMALLEST = 1e-30  # scale of an accumulator below which it counts as 0
BLOCK = 2 * 2**20  # bytes of currents in float64 that a cache of a core holds


def membrane_grid(bound: Tensor) -> Tensor:
    """Return the finest powers of two such that float32 holds multiples of their halves up to `bound` without rounding."""
    return 2.0 ** (bound.log2().ceil() - MANTISSA + 1)  # half a threshold lies on half of the grid


def split(value: Tensor, grid: Tensor) -> Tensor:
    """Return (high, low) [2, ...] float32 of a float64 tensor: high is a multiple of `grid`, high + low = value to 2^-25 grids."""
    high = (value / grid).round() * grid
    return torch.stack((high, value - high)).float()


def neuron_constants(scale: Tensor, threshold: Tensor, bias: Tensor, factor: Tensor, largest: Tensor, time_steps: int,
                     *others: Tensor) -> Tensor:
    """Return θ, bias, factor of the second input and retraction bound as pairs in units of `scale`, [4, 2, C] float32.

    A current is I = scale · accumulator + bias + factor · second, per channel; `others` are the factors of third and further
    inputs, whose pairs come last. Divided by `scale`, the accumulator is an integer and each other value a pair: `high` on a
    grid so coarse that none of its sums is ever rounded, and `low`, the rest. So the membrane is known to 2^-24 of a grid step,
    some 2^-35 of θ, and rounding affects only comparisons between two such rests: the spikes are those of a float64 run. Each
    channel has a grid of its own: a gain near 0 needs a coarse grid, on which the accumulator, which hardly counts there, is
    rounded.

    Args:
        scale: [C] float64, positive.
        threshold, bias, factor: [C] float64.
        largest: [C], bound on |accumulator| + |factor · second| / scale, and so on.
        time_steps: T.
    """
    parts = torch.stack((threshold, bias, factor, torch.full_like(scale, RETRACTION), *others)) / scale
    bound = (time_steps + 1) * (largest + parts.abs().sum(0))
    return split(parts, membrane_grid(bound)).transpose(0, 1).contiguous()


def fire(accumulator: Tensor, second: Tensor | None, constants: Tensor, time_steps: int, signed: bool, delay: int,
         zero: int, dtype: torch.dtype, start: float = HALF, *others: Tensor) -> Tensor:
    """Return the spike train of `integrate_and_fire` for the currents of these accumulators.

    Args:
        accumulator: [T, N, C], float32, or float64 of currents; [1, N, C] is constant over time.
        second: a residual, [T, N, C] of any number type, or None.
        constants: [4 + number of others, 2, C] float32, see `neuron_constants`, or [4, 1, C] float64.
        zero: added to each spike, so that unsigned bytes can hold -1.
        dtype: of the result.
        start: membrane before the first step in θ, 1/2 or 0: both lie on half of the grid.
        others: further inputs as `second`.

    Returns:
        [T, N, C] in {-1, 0, 1} + zero.
    """
    theta, bias, factor, retraction, *more = constants  # [parts, C] each: high and low, or one
    inputs = [] if second is None else [(second, factor)]
    inputs += zip(others, more, strict=True)
    membrane = list(theta * start)
    fired: Tensor | None = None  # nothing to take back yet: the first step needs no comparison for it
    spike_train, seen = [], 0
    for step in range(time_steps):
        while seen < min(step + 1 + delay, time_steps):
            at = min(seen, accumulator.shape[0] - 1)
            high, *low = bias
            current = [accumulator[at] + high, *low]
            for values, weight in inputs:
                residual = values[at].to(accumulator.dtype)
                current = [part + residual * gain for part, gain in zip(current, weight, strict=True)]
            membrane = [part + arrived for part, arrived in zip(membrane, current, strict=True)]
            seen += 1
        spikes = reaches(membrane, theta).to(accumulator.dtype)
        if signed and fired is None:
            fired = spikes
        elif signed:
            retracted = reaches(retraction, membrane).to(accumulator.dtype)
            spikes = spikes - torch.minimum(retracted, fired)
            fired = fired + spikes
        membrane = [part - spikes * value for part, value in zip(membrane, theta, strict=True)]
        spike_train.append(stored(spikes, zero, dtype))
    return torch.stack(spike_train)


def reaches(value: Sequence[Tensor], bound: Sequence[Tensor]) -> Tensor:
    """Return value >= bound, each a number or a pair (high, low) that stands for its sum."""
    if len(value) == 1:
        return value[0] >= bound[0]
    (high, low), (bound_high, bound_low) = value, bound
    return high - bound_high >= bound_low - low


def stored(spikes: Tensor, zero: int, dtype: torch.dtype) -> Tensor:
    """Return spikes + zero in a number type; by way of float32, since the compiler makes bytes of float64 one by one."""
    return (spikes + zero).to(torch.float32).to(dtype)


def fire_steps(accumulator: Tensor, second: Tensor | None, currents: Tensor, constants: Tensor, time_steps: int, signed: bool,
               delay: int, zero: int, dtype: torch.dtype, start: float = HALF, *others: Tensor) -> Tensor:
    """Return the spike train of `fire` where each time step has its own scale, bias and factors.

    I_t = scale_t · accumulator_t + bias_t + factor_t · second_t, and so on for the `others`. No common unit makes all
    accumulators integers, so the sums are in float64: rounded to 2^-53, as those of a float64 run.

    Args:
        accumulator: [T, N, C] float32.
        currents: scale, bias and the factors of `second` and of each other, [3 + others, T, C] float64.
        constants: as in `fire`, [4, 1, C] float64, with bias and factor 0, in the unit of θ.
    """
    current = current_of(accumulator, second, currents, *others)
    return fire(current, None, constants, time_steps, signed, delay, zero, dtype, start)


def fire_levels(accumulator: Tensor, second: Tensor | None, currents: Tensor, constants: Tensor, most: int, zero: int,
                dtype: torch.dtype, *others: Tensor) -> Tensor:
    """Return the spikes of `rounded`, 0 to `most` of a neuron in its one step, + zero, [1, N, C]; arguments as in `fire_steps`."""
    current = current_of(accumulator, second, currents, *others)
    return stored(rounded(current, constants[0, 0], most), zero, dtype)


def current_of(accumulator: Tensor, second: Tensor | None, currents: Tensor, *others: Tensor) -> Tensor:
    """Return the current [T, N, C] float64 that accumulators stand for; see `fire_steps`."""
    scale, bias, *factors = currents.unsqueeze(2)
    current = accumulator.double() * scale + bias
    for term, factor in zip(() if second is None else (second, *others), factors, strict=second is not None):
        current = current + term.double() * factor
    return current


# What `FusedNeuron.pass_` returns, and the same in C++.
NATIVE = MappingProxyType({fire: calls.fire, fire_steps: calls.fire_steps, fire_levels: calls.fire_levels})


class FusedNeuron(nn.Module):
    """A neuron on accumulators, whose spikes have the form that the next convolution takes.

    Args:
        constants: see `fire`.
        currents: see `fire_steps`; None if all time steps share scale and bias.
    """

    def __init__(self, neuron: IFNeuron, constants: Tensor, convolution: Convolution, fused: bool, currents: Tensor | None = None):
        super().__init__()
        self.register_buffer("constants", constants)
        self.register_buffer("currents", currents)
        self.time_steps, self.signed, self.delay, self.encodes = neuron.time_steps, neuron.kind.signed, neuron.delay, neuron.encodes
        self.register_buffer("threshold", neuron.threshold.detach().double().clone())  # not a number, for which a GPU would wait
        self.zero, self.dtype = convolution.zero, convolution.dtype
        self.fused, self.start = fused, neuron.start

    def forward(self, accumulator: Tensor, second: Tensor | None, *others: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map [T·B, C, ...], or [B, C, ...] if the neuron encodes, to spikes + zero [T·B, C, ...]; `weight`: see `after`."""
        if weight is not None:
            return self.after(weight, accumulator)

        def rows(x: Tensor) -> Tensor:  # [T, B·..., C]
            return x.movedim(1, -1).reshape(1 if self.encodes else self.time_steps, -1, accumulator.shape[1])

        _, channels, *places = accumulator.shape
        spikes = self._fire(rows(accumulator), None if second is None else rows(second), *map(rows, others))
        return spikes.view(-1, *places, channels).movedim(-1, 1)

    def after(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return `forward` for the currents `weight` · x, a 1x1 convolution in float64 of x [T·B, C, ...].

        It takes some places at a time, so that a cache holds their currents: to write them to memory and read them again would
        take longer than the product.
        """
        _, channels, *places = x.shape
        rows = x.unflatten(0, (self.time_steps, -1)).movedim(2, -1).reshape(self.time_steps, -1, channels)
        parts = -(-8 * self.time_steps * rows.shape[1] * len(weight) // BLOCK)
        spikes = []
        for part in rows.tensor_split(parts, 1):
            current = x.new_empty(self.time_steps, part.shape[1], len(weight))
            for step, one in zip(current, part, strict=True):
                torch.mm(one, weight.T, out=step)
            spikes.append(self._fire(current))
        return torch.cat(spikes, 1).view(-1, *places, len(weight)).movedim(-1, 1)

    def _fire(self, accumulator: Tensor, second: Tensor | None = None, *others: Tensor) -> Tensor:
        function, *how = self.pass_()
        return calls.run(NATIVE[function], function, self.fused, accumulator, second, *how, *others)

    def pass_(self) -> tuple:
        """Return the fused pass and its arguments between the second input and the others."""
        how = (self.constants, self.time_steps, self.signed, self.delay, self.zero, self.dtype, self.start)
        return (fire, *how) if self.currents is None else (fire_steps, self.currents, *how)

    def decode(self, spikes: Tensor) -> Tensor:
        """Map the output of `forward` to s·θ, the output of an `IFNeuron`."""
        return (spikes.float() - self.zero) * self.threshold

    def rate(self, spikes: Tensor) -> Tensor:
        """Map the output of `forward` to the mean output θ · firing rate [B, C, H, W]."""
        if not spikes.is_floating_point() and (1 + self.zero) * self.time_steps > torch.iinfo(spikes.dtype).max:
            spikes = spikes.short()
        total, *rest = spikes.unflatten(0, (self.time_steps, -1))
        for later in rest:
            total = total + later
        return (total.float() - self.zero * self.time_steps) * (self.threshold / self.time_steps)

    def rates(self, spikes: Tensor) -> Tensor:
        """Return `rate` over the first T' = 1..T steps, [T, B, ...]; the last one is that of all steps, bit for bit."""
        counts = spikes.unflatten(0, (self.time_steps, -1)).cumsum(0, dtype=torch.float32)  # of integers: exact
        steps = torch.arange(1, self.time_steps + 1, dtype=torch.float64, device=spikes.device)
        steps = steps.view(-1, *[1] * (counts.dim() - 1))
        return (counts - (self.zero * steps).float()) * (self.threshold / steps).float()
