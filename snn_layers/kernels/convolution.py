"""Kernels of a deployed network on a GPU: convolution of spikes, sums over time and neuron in one; see `launch`.

The equation, per output channel and in units of its scale. After the first `seen` of T input steps and with n spikes given
so far, the membrane of `integrate_and_fire` is

    v = S + factor · X + seen · bias + start · θ - n · θ

where S is the sum of the accumulators and X that of the second source. Both are sums of integers, so that tensor cores add
up S over all steps, in int32, and no membrane needs to be kept beside it. A neuron compares S + factor · X - n · θ with a
level of its channel and step. All but S, X and n are pairs (high, low) as of `split`: the high parts are multiples of a
grid on which float32 rounds no sum or product that occurs here, so that it does not matter whether a compiler contracts
a·b + c. Only the sum of low parts is rounded, to some 2^-24 of a grid step.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Window(NamedTuple):
    """Geometry of a convolution over [.., height, width, channels], of which each group sees `group_channels`."""

    height: int
    width: int
    channels: int
    group_channels: int
    kernel_width: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    size: int  # weights of an output channel
    pitch: int  # the same, padded: from one channel's weights to the next one's


class Tile(NamedTuple):
    """How a kernel cuts its work: pixels, channels and weights at a time; `unroll` keeps all weights of the tile at hand."""

    pixels: int
    channels: int
    depth: int
    unroll: bool
    warps: int
    stages: int


@triton.jit
def load_spikes(image, at, row, column, start, window: tl.constexpr, depth: tl.constexpr):
    """Return the spikes [pixels, depth] that meet the weights start..start+depth; 0 outside of the image.

    Weights behind the last one are 0 and need no mask: all that is read lies in the image.
    """
    k = tl.arange(0, depth)
    if window.group_channels % depth == 0:  # the whole of it belongs to one tap
        tap, channel = start // window.group_channels, start % window.group_channels + k
        down = tap // window.kernel_width * window.dilation[0]
        right = tap % window.kernel_width * window.dilation[1]
        inside = ((row + down).to(tl.uint32) < window.height) & ((column + right).to(tl.uint32) < window.width)
        place = (down * window.width + right) * window.channels + channel
        return tl.load(image + (at[:, None] + place[None, :]), mask=inside[:, None], other=0)
    tap, channel = (start + k) // window.group_channels, (start + k) % window.group_channels
    down = tap // window.kernel_width * window.dilation[0]
    right = tap % window.kernel_width * window.dilation[1]
    inside = (row[:, None] + down[None, :]).to(tl.uint32) < window.height
    inside &= ((column[:, None] + right[None, :]).to(tl.uint32) < window.width)
    place = (down * window.width + right) * window.channels + channel
    return tl.load(image + (at[:, None] + place[None, :]), mask=inside, other=0)


@triton.jit
def load_weights(weight, n, last, start, window: tl.constexpr, depth: tl.constexpr):
    """Return weights [depth, channels] from start on, of the output channels n < last."""
    k = start + tl.arange(0, depth)
    return tl.trans(tl.load(weight + (n[:, None] * window.pitch + k[None, :]), mask=(n < last)[:, None], other=0))


@triton.jit
def keep_weights(weight, n, last, window: tl.constexpr, tile: tl.constexpr):
    """Return all weights of a tile as a tuple, if it is to keep them."""
    kept = ()
    if tile.unroll:
        blocks: tl.constexpr = (window.size + tile.depth - 1) // tile.depth
        for index in tl.static_range(blocks):
            kept += (load_weights(weight, n, last, index * tile.depth, window, tile.depth),)
    return kept


@triton.jit
def convolve(total, image, at, row, column, weight, kept, n, last, window: tl.constexpr, tile: tl.constexpr):
    """Return total + convolution of one time step."""
    if tile.unroll:
        blocks: tl.constexpr = (window.size + tile.depth - 1) // tile.depth
        for index in tl.static_range(blocks):
            a = load_spikes(image, at, row, column, index * tile.depth, window, tile.depth)
            total = tl.dot(a, kept[index], total, out_dtype=tl.int32)
    else:
        for start in range(0, window.size, tile.depth):
            a = load_spikes(image, at, row, column, start, window, tile.depth)
            total = tl.dot(a, load_weights(weight, n, last, start, window, tile.depth), total, out_dtype=tl.int32)
    return total


@triton.jit
def corner(place, image, valid, width: tl.constexpr, window: tl.constexpr):
    """Return (offset, row, column) of the window's first tap for pixels `place` of an image with `width` output columns."""
    row = place // width * window.stride[0] - window.padding[0]
    column = place % width * window.stride[1] - window.padding[1]
    at = ((image * window.height + row) * window.width + column) * window.channels
    return at, tl.where(valid, row, -1073741824), column  # a row that no tap brings into the image


@triton.jit
def constant(constants, index, channels: tl.constexpr, inside):
    """Return a row [1, channels] of the constants."""
    return tl.load(constants + index * channels, mask=inside, other=0.0)[None, :]


@triton.jit(do_not_specialize=["images"])
def spiking_convolution_kernel(out, spikes, weight, second, side, constants, images, stride, second_stride, written_stride,
                               height: tl.constexpr, width: tl.constexpr, groups: tl.constexpr, group_width: tl.constexpr,
                               window: tl.constexpr, side_window: tl.constexpr, source: tl.constexpr, tile: tl.constexpr,
                               steps: tl.constexpr, signed: tl.constexpr, delay: tl.constexpr):
    """Write spikes [T, B, height, width, C'] int8 for spikes [T, B, H, W, C] int8.

    `source` 1 adds an identity, 2 a convolution. Strides are those from one time step to the next.
    """
    blocks: tl.constexpr = (group_width + tile.channels - 1) // tile.channels
    plane: tl.constexpr = height * width
    channels: tl.constexpr = groups * group_width
    group = tl.program_id(0) % (groups * blocks) // blocks
    pixels: tl.constexpr = tile.pixels
    wide: tl.constexpr = tile.channels
    deep: tl.constexpr = 32 if wide < 32 else wide
    base = tl.program_id(0) % blocks * wide  # of the channels, within the group
    n = base + tl.arange(0, wide)
    inside = n < group_width
    pixel = tl.program_id(0) // (groups * blocks) * tile.pixels  # neighbours read the same spikes
    first = pixel // plane
    place = pixel - first * plane + tl.arange(0, tile.pixels)
    image, place = place // plane, place % plane
    valid = first + image < images
    first = first.to(tl.int64)  # whole tensors may pass 2^31 bytes, a tile's offsets do not
    written = (image * plane + place)[:, None] * channels + n[None, :]
    mask = valid[:, None] & inside[None, :]
    out += first * (plane * channels) + group * group_width

    at, row, column = corner(place, image, valid, width, window)
    spikes += first * (window.height * window.width * window.channels) + group * window.group_channels
    weight += group * group_width * window.pitch
    kept = keep_weights(weight, n, group_width, window, tile)
    kept_side, at_side, row_side, column_side = (), at, row, column
    if source == 1:
        second += first * (plane * channels) + group * group_width
    if source == 2:
        at_side, row_side, column_side = corner(place, image, valid, width, side_window)
        second += first * (side_window.height * side_window.width * side_window.channels)
        second += group * side_window.group_channels
        side += group * group_width * side_window.pitch
        kept_side = keep_weights(side, n, group_width, side_window, tile)

    # The identity is a product with ones on a diagonal, as that leaves its sum where the other sum is.
    k = tl.arange(0, deep)
    same = (k[:, None] == tl.arange(0, wide)[None, :]).to(tl.int8)
    beside = (image * plane + place)[:, None] * channels + (base + k)[None, :]
    mask_beside = valid[:, None] & ((k < wide) & (base + k < group_width))[None, :]
    constants += group * group_width + n
    total, other = tl.zeros((pixels, wide), tl.int32), tl.zeros((pixels, wide), tl.int32)
    fired = tl.zeros((pixels, wide), tl.float32)
    for step in range(steps + delay):
        if delay == 0 or step < steps:
            total = convolve(total, spikes, at, row, column, weight, kept, n, group_width, window, tile)
            spikes += stride
            if source == 1:
                other = tl.dot(tl.load(second + beside, mask=mask_beside, other=0), same, other, out_dtype=tl.int32)
                second += second_stride
            if source == 2:
                other = convolve(other, second, at_side, row_side, column_side, side, kept_side, n, group_width, side_window,
                                 tile)
                second += second_stride
        if delay == 0 or step >= delay:
            seen = tl.minimum(step + 1, steps)
            # Read anew at each step: kept in registers, the constants of all channels that a thread sees would fill them.
            high = total.to(tl.float32) - fired * constant(constants, 0, channels, inside)
            low = fired * constant(constants, 1, channels, inside)
            level = constant(constants, 4 * seen, channels, inside)
            level_low = constant(constants, 4 * seen + 1, channels, inside)
            if source != 0:
                high += other.to(tl.float32) * constant(constants, 2, channels, inside)
                low -= other.to(tl.float32) * constant(constants, 3, channels, inside)
            given = (high - level >= low + level_low).to(tl.float32)
            if signed:
                level = constant(constants, 4 * seen + 2, channels, inside)
                level_low = constant(constants, 4 * seen + 3, channels, inside)
                given -= ((high - level <= low + level_low) & (fired > 0)).to(tl.float32)
            fired += given
            tl.store(out + written, given.to(tl.int8), mask=mask)
            out += written_stride
