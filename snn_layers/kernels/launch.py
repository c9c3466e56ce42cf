"""The spiking convolution on a GPU: int8 spikes in, int8 spikes out, one kernel a unit."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..functional import HALF, RETRACTION
from ..fused import membrane_grid, split
from ..integer import LARGEST, Geometry
from .convolution import Tile, Window, spiking_convolution_kernel

PITCH = 128  # weights of a channel are padded to a multiple, so that every depth of tile divides it


@dataclass(frozen=True)
class Weights:
    """Integer weights as the kernel reads them.

    Attributes:
        packed: [C', K] int8, K = k·k·C/groups in the order (row, column, channel), padded with zeros.
        shape: (C', C/groups, k, k).
    """

    packed: Tensor
    shape: tuple[int, int, int, int]
    geometry: Geometry

    def window(self, height: int, width: int) -> Window:
        """Return the window on spikes of this size."""
        _, group_channels, kernel_height, kernel_width = self.shape
        how = self.geometry
        return Window(height, width, group_channels * how.groups, group_channels, kernel_width, how.stride, how.padding,
                      how.dilation, group_channels * kernel_height * kernel_width, self.packed.shape[1])

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """Return (H', W')."""
        how = self.geometry
        spans = [d * (k - 1) + 1 for d, k in zip(how.dilation, self.shape[2:], strict=True)]
        return tuple((size + 2 * p - span) // s + 1
                     for size, p, span, s in zip((height, width), how.padding, spans, how.stride, strict=True))


@dataclass(frozen=True)
class SpikingConvolution:
    """A unit: neuron(scale · (conv(spikes) + factor · second) + bias), `second` an identity or a convolution of its own.

    Attributes:
        weights: of the convolution; scales are positive.
        constants: [4 + 4·T, C'] float32, see `neuron_levels`.
        time_steps, signed, delay: of the neuron.
        side: weights of the second source; None: it is added as it is, if there is one.
    """

    weights: Weights
    constants: Tensor
    time_steps: int
    signed: bool = True
    delay: int = 0
    side: Weights | None = None


def pack(weight: Tensor, geometry: Geometry) -> Weights:
    """Return integer weights [C', C/groups, k, k] of any number type as the kernel reads them.

    Raises:
        ValueError: weights that are no integers within ±127.
    """
    if not torch.equal(weight, weight.round()) or weight.abs().max() > LARGEST:
        raise ValueError("the integer path needs hidden weights of 2 to 6 APoT bits, integers within 127: use the float path")
    rows = weight.permute(0, 2, 3, 1).flatten(1).to(torch.int8)
    return Weights(F.pad(rows, (0, -rows.shape[1] % PITCH)).contiguous(), tuple(weight.shape), geometry)


def neuron_levels(scale: Tensor, threshold: Tensor, bias: Tensor, factor: Tensor, largest: Tensor, time_steps: int,
                  start: float = HALF) -> Tensor:
    """Return what the kernel compares sums of integers with: rows [4 + 4·T, C] float32, in units of `scale`.

    They are the pairs (high, low) of θ and of the factor, and, after each of T steps, of the level from which a neuron that
    has not fired yet does so, and of that down to which it takes a spike back. Pairs and their grid are those of
    `neuron_constants`, which see for the arguments.
    """
    theta, bias, factor, bound = torch.stack((threshold, bias, factor, torch.full_like(scale, RETRACTION))) / scale
    seen = torch.arange(1, time_steps + 1, dtype=torch.float64, device=scale.device)[:, None]
    drift = start * theta + seen * bias  # of the membrane, without any input
    grid = membrane_grid((time_steps + 1) * (largest + theta + bias.abs() + factor.abs() + bound.abs()))
    # A level is a multiple of half a grid, as half a threshold is.
    levels = torch.stack((split(theta - drift, grid), split(bound - drift, grid)), 1)  # [high or low, which, T, C]
    pairs = split(torch.stack((theta, factor)), grid)  # [high or low, which, C]
    return torch.cat((pairs.transpose(0, 1).flatten(0, 1), levels.permute(2, 1, 0, 3).flatten(0, 2)))


def default_tile(pixels: int, group_width: int, size: int) -> Tile:
    """Return the tile for a unit, without a search."""
    channels = max(16, min(128, triton.next_power_of_2(group_width)))
    if size <= 320:
        return Tile(128, channels, 32, True, 8 if channels >= 32 else 4, 2)
    return Tile(128, channels, 64 if channels <= 64 else 128, False, 8, 3)


def spiking_convolution(spikes: Tensor, unit: SpikingConvolution, second: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """Return the spikes of a unit.

    Args:
        spikes: [T·B, C, H, W] int8 in {-1, 0, 1}, time-major; fast if channels lie together in memory.
        unit: its constants, on the same device.
        second: int8 [T·B, C', H', W'], or what `unit.side` convolves.
        tile: how the work is cut; by default by a rule.

    Returns:
        [T·B, C', H', W'] int8 in {-1, 0, 1}, channels last.

    Raises:
        ValueError: spikes of another type, or of a shape that does not fit the weights.
    """
    weights, how, steps = unit.weights, unit.weights.geometry, unit.time_steps
    spikes = taken(spikes, weights, "spikes")
    window, images = weights.window(*spikes.shape[2:]), len(spikes) // steps
    channels, height, width = weights.shape[0], *weights.output_size(*spikes.shape[2:])
    source, side, side_window = 0, weights, window
    if second is not None and unit.side is None:
        source, produced = 1, tuple(second.shape[1:])
        second = taken(second, None, "the second source")
    elif second is not None:
        source, side = 2, unit.side
        second = taken(second, side, "the second source")
        side_window = side.window(*second.shape[2:])
        produced = (side.shape[0], *side.output_size(*second.shape[2:]))
    if source and (produced != (channels, height, width) or len(second) != len(spikes) or side.geometry.groups != how.groups):
        raise ValueError(f"the second source gives {list(produced)} in {side.geometry.groups} groups, the first "
                         f"{[channels, height, width]} in {how.groups}: they must agree")
    out = torch.empty((len(spikes), channels, height, width), dtype=torch.int8, device=spikes.device,
                      memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    second = spikes if second is None else second
    pixels, group_width = images * height * width, channels // how.groups
    tile = tile or default_tile(pixels, group_width, window.size)
    grid = (triton.cdiv(pixels, tile.pixels) * how.groups * triton.cdiv(group_width, tile.channels),)
    spiking_convolution_kernel[grid](
        out, spikes, weights.packed, second, side.packed, unit.constants, images,
        spikes.numel() // steps, second.numel() // steps, out.numel() // steps,
        height, width, how.groups, group_width, window, side_window, source, tile, steps, unit.signed, unit.delay,
        num_warps=tile.warps, num_stages=tile.stages)
    return out


def taken(spikes: Tensor, weights: Weights | None, name: str) -> Tensor:
    """Return spikes as the kernel reads them, padded where the kernel cannot.

    Raises:
        ValueError: no bytes, or a number of channels that does not fit the weights.
    """
    channels = spikes.shape[1] if weights is None else weights.shape[1] * weights.geometry.groups
    if spikes.dtype != torch.int8 or spikes.dim() != 4 or spikes.shape[1] != channels:
        raise ValueError(f"{name}: int8 [T·B, {channels}, H, W] is needed, not {spikes.dtype} {list(spikes.shape)}")
    spikes = spikes if weights is None else weights.geometry.padded(spikes)
    return spikes.contiguous(memory_format=torch.channels_last)
