"""The first unit on a GPU: its current is constant over time, so that one kernel convolves once and writes the spikes of all steps.

Currents are sums in float64, as a GPU of a data centre adds them at half its speed in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import functional
from ..integer import Geometry
from .launch import Weights

PIXELS = 64  # of a tile
RETRACTION = tl.constexpr(functional.RETRACTION)


@triton.jit
def encode(out, written, mask, current, threshold, start, stride, steps: tl.constexpr, signed: tl.constexpr,
           delay: tl.constexpr):
    """Write T steps of the spikes of float64 currents that are constant over time, `stride` values apart."""
    membrane = tl.zeros_like(current) + threshold * start
    fired = tl.zeros_like(current)
    for _ in tl.static_range(delay):
        membrane += current
    for step in tl.static_range(steps):
        if step + delay < steps:
            membrane += current
        given = (membrane >= threshold).to(tl.float64)
        if signed:
            given -= ((membrane <= RETRACTION) & (fired > 0)).to(tl.float64)
        fired += given
        membrane -= given * threshold
        tl.store(out + written, given.to(tl.int8), mask=mask)
        out += stride


@triton.jit(do_not_specialize=["count"])
def encoding_kernel(out, current, threshold, count, start, block: tl.constexpr, steps: tl.constexpr, signed: tl.constexpr,
                    delay: tl.constexpr):
    """Write spikes [T, count] int8 for currents [count] float64."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = place < count
    encode(out, place, mask, tl.load(current + place, mask=mask, other=0.0), tl.load(threshold), start, count.to(tl.int64),
           steps, signed, delay)


@triton.jit(do_not_specialize=["images"])
def encoding_convolution_kernel(out, image, weight, bias, threshold, images, strides, start, height: tl.constexpr,
                                width: tl.constexpr, channels: tl.constexpr, window: tl.constexpr, pixels: tl.constexpr,
                                wide: tl.constexpr, steps: tl.constexpr, signed: tl.constexpr, delay: tl.constexpr):
    """Write spikes [T, B, height, width, C'] int8 for images [B, C, H, W] of any strides; weights [k·k·C, C'] float64."""
    blocks: tl.constexpr = (channels + wide - 1) // wide
    plane: tl.constexpr = height * width
    n = tl.program_id(0) % blocks * wide + tl.arange(0, wide)
    inside = n < channels
    place = (tl.program_id(0) // blocks).to(tl.int64) * pixels + tl.arange(0, pixels)
    number = place // plane
    valid = number < images
    row = place % plane // width * window.stride[0] - window.padding[0]
    column = place % width * window.stride[1] - window.padding[1]
    at = number * strides[0] + row * strides[2] + column * strides[3]
    current = tl.zeros((pixels, wide), tl.float64) + tl.load(bias + n, mask=inside, other=0.0)[None, :]
    for k in range(window.size):
        tap, channel = k // window.channels, k % window.channels
        down, right = tap // window.kernel_width * window.dilation[0], tap % window.kernel_width * window.dilation[1]
        seen = valid & (row + down >= 0) & (row + down < window.height) & (column + right >= 0) & (column + right < window.width)
        values = tl.load(image + at + (channel * strides[1] + down * strides[2] + right * strides[3]), mask=seen, other=0.0)
        weights = tl.load(weight + k * channels + n, mask=inside, other=0.0)
        current += values.to(tl.float64)[:, None] * weights[None, :]
    written = place[:, None] * channels + n[None, :]
    encode(out, written, valid[:, None] & inside[None, :], current, tl.load(threshold), start,
           images.to(tl.int64) * (plane * channels), steps, signed, delay)


def encode_current(current: Tensor, threshold: Tensor, time_steps: int, signed: bool = True, delay: int = 0,
                   start: float = functional.HALF) -> Tensor:
    """Return the spikes [T·B, C, H, W] int8, channels last, for float64 currents [B, C, H, W] that are constant over time.

    Args:
        threshold: θ, float64, one number, on the same device.
    """
    current = current.contiguous(memory_format=torch.channels_last)
    out = torch.empty((time_steps * len(current), *current.shape[1:]), dtype=torch.int8, device=current.device,
                      memory_format=torch.channels_last)
    count = current.numel()
    encoding_kernel[(triton.cdiv(count, 1024),)](out, current, threshold, count, start, 1024, time_steps, signed, delay)
    return out


def encode_images(images: Tensor, weights: Weights, bias: Tensor, threshold: Tensor, time_steps: int, signed: bool = True,
                  delay: int = 0, start: float = functional.HALF) -> Tensor:
    """Return the spikes [T·B, C', H', W'] int8, channels last, of an encoding unit; its currents are sums in float64.

    Args:
        images: [B, C, H, W] float32 or float64, of any strides.
        weights: float64, as of `pack_encoding`.
        bias: [C'] float64.
        threshold: θ, float64, one number, on the same device.
    """
    images = weights.geometry.padded(images)
    channels, height, width = weights.shape[0], *weights.output_size(*images.shape[2:])
    out = torch.empty((time_steps * len(images), channels, height, width), dtype=torch.int8, device=images.device,
                      memory_format=torch.channels_last)
    wide = min(32, max(8, triton.next_power_of_2(channels)))
    grid = (triton.cdiv(len(images) * height * width, PIXELS) * triton.cdiv(channels, wide),)
    encoding_convolution_kernel[grid](out, images, weights.packed, bias, threshold, len(images), images.stride(), start, height,
                                      width, channels, weights.window(*images.shape[2:]), PIXELS, wide, time_steps, signed, delay)
    return out


def pack_encoding(weight: Tensor, geometry: Geometry) -> Weights:
    """Return float64 weights [C', C, k, k] as `encode_images` reads them: [k·k·C, C'].

    Raises:
        ValueError: a convolution in groups.
    """
    if geometry.groups != 1:
        raise ValueError(f"the first convolution has {geometry.groups} groups: its kernel is written for 1")
    return Weights(weight.double().permute(2, 3, 1, 0).flatten(0, 2).contiguous(), tuple(weight.shape), geometry)
