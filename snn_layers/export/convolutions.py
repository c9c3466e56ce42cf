"""Convolutions in ONNX: of bytes by ConvInteger, of float64 by exact ones in float32; and weights as integers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant import common_step

from .record import Recorder

BYTE = 255
LARGEST = 127  # largest numerator that an unsigned byte with zero point 128 holds
MANTISSA = 24  # bits of an integer that float32 holds
WANTED = 44  # bits of an image that count
MAP_LIMIT = 2**22  # entries of the largest matrix that a file may hold for a pooling


def convolution(r: Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                dilation: list[int], transposed: bool, output_padding: list[int], groups: int) -> str:
    """Return a convolution: bytes in integers; float64 exactly if the weights are integers; else, and transposed, in float32."""
    attributes = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups,
                  "kernel_shape": list(weight.shape[2:])}
    source = r.bytes_of.get(r.value(x))
    if transposed:
        if output_padding:
            attributes["output_padding"] = output_padding
        total = r.node("ConvTranspose", r.value(x, torch.float32), r.value(weight, torch.float32), **attributes)
        total = total if out.dtype == torch.float32 else r.cast(total, out.dtype)
    elif source is not None and torch.equal(weight, weight.round()) and weight.abs().max() <= LARGEST:
        value, zero = source  # onnxruntime convolves unsigned bytes several times faster than signed ones
        middle = LARGEST + 1
        small = r.value((weight + middle).to(torch.uint8))
        total = r.node("ConvInteger", value, small, r.constant(zero, np.uint8), r.constant(middle, np.uint8), **attributes)
        total = r.cast(total, out.dtype)
    elif x.dtype == torch.float64:
        total = precise(r, out, x, weight, attributes)
    else:
        total = r.node("Conv", r.value(x), r.value(weight), **attributes)
    return total if bias is None else r.node("Add", total, r.value(places(bias, out.dim() - 1), out.dtype))


def precise(r: Recorder, out: Tensor, x: Tensor, weight: Tensor, attributes: dict[str, Any]) -> str:
    """Return a convolution in float64, which runtimes lack.

    With a kernel of one place it is a matrix product. Otherwise x is cut into parts of so few bits that float32 rounds no sum
    of their products with the integers of the weights. The convolutions of the parts add up to that of the 44 leading bits of
    x. Weights that are not integers times a step for each channel are convolved in float32.
    """
    found = integers(weight)
    plain = attributes["group"] == 1 and set(attributes["strides"]) == {1} and not any(attributes["pads"])
    if plain and weight[0, 0].numel() == 1:
        flat = r.node("Reshape", r.value(x), r.constant([-1, x.shape[1], math.prod(x.shape[2:])], np.int64))
        matrix = r.value(weight.flatten(1)) if found is None else bytes_as(r, found[0].flatten(1), torch.float64)
        product = r.node("Reshape", r.node("MatMul", matrix, flat), r.shape(out))
        return product if found is None else r.node("Mul", product, r.value(places(found[1], out.dim() - 1)))
    bits = 0 if found is None else MANTISSA - math.ceil(math.log2(found[0].abs().flatten(1).sum(1).max().clamp(min=1).item()))
    if bits < 2:
        return r.cast(r.node("Conv", r.value(x, torch.float32), r.value(weight, torch.float32), **attributes), torch.float64)
    numerators, steps = found
    weights = bytes_as(r, numerators, torch.float32)

    def number(value: float) -> str:
        return r.constant(value, np.float64)

    # The power of two above the largest magnitude; a little more, in case the logarithm was rounded down.
    largest = r.node("Max", r.node("ReduceMax", r.node("Abs", r.value(x)), keepdims=0), number(1e-30))
    exponent = r.node("Ceil", r.node("Add", r.node("Mul", r.node("Log", largest), number(1 / math.log(2))), number(1e-9)))
    scale = r.node("Pow", number(2.0), exponent)
    rest, total = r.node("Div", r.value(x), scale), ""
    for part in range(1, math.ceil(WANTED / bits) + 1):
        rest = r.node("Mul", rest, number(2.0**bits))
        whole = r.node("Round", rest)
        rest = r.node("Sub", rest, whole)
        product = r.node("Conv", r.cast(whole, torch.float32), weights, **attributes)
        weighted = r.node("Mul", r.cast(product, torch.float64), number(2.0 ** (-bits * part)))
        total = r.node("Add", total, weighted) if total else weighted
    return r.node("Mul", r.node("Mul", total, scale), r.value(places(steps, out.dim() - 1)))


def bytes_as(r: Recorder, numerators: Tensor, dtype: torch.dtype) -> str:
    """Return integers in a floating-point type; the file holds them as bytes, with a zero point if they need one."""
    zero = -numerators.min().clamp(max=0)
    if numerators.abs().max() <= LARGEST:
        return r.cast(r.value(numerators.to(torch.int8)), dtype)
    if numerators.max() + zero > BYTE:
        return r.cast(r.value(numerators.to(torch.int16)), dtype)
    return r.node("Sub", r.cast(r.value((numerators + zero).to(torch.uint8)), dtype), r.value(zero, dtype))


def linear_map(r: Recorder, out: Tensor, x: Tensor, *arguments: Any, function: Callable[..., Tensor], **named: Any) -> str:
    """Return a pooling or an upsampling as a product with a matrix, since it maps the places of all channels alike.

    Raises:
        ValueError: the matrix is too large for a file.
    """
    before, after = math.prod(x.shape[2:]), math.prod(out.shape[2:])
    dtype = x.dtype if x.is_floating_point() else torch.float32
    if before * after > MAP_LIMIT:
        raise ValueError(f"{r.place}: {function.__name__} from {list(x.shape[2:])} to {list(out.shape[2:])} places is too large a "
                         "matrix for a file: export the network for smaller images")
    basis = torch.eye(before, dtype=torch.float64).view(before, 1, *x.shape[2:])
    matrix = function(basis, *arguments, **named).reshape(before, after)
    flat = r.node("Reshape", r.value(x, dtype), r.constant([-1, x.shape[1], before], np.int64))
    found = r.node("Reshape", r.node("MatMul", flat, r.value(matrix, dtype)), r.shape(out))
    return found if dtype == out.dtype else r.cast(found, out.dtype)


def average_pool(r: Recorder, out: Tensor, x: Tensor, kernel: list[int], stride: list[int] = (), padding: list[int] = (0, 0),
                 ceil: bool = False, counts_padding: bool = True, divisor: int | None = None) -> str:
    """Return an average pooling as the convolution with ones, so that sums of integers are exact."""
    if ceil or (any(padding) and not counts_padding):
        return linear_map(r, out, x, kernel, stride, padding, ceil, counts_padding, divisor, function=torch.ops.aten.avg_pool2d)
    kernel, channels = list(kernel) * (2 // len(kernel)), x.shape[1]
    ones = torch.ones(channels, 1, *kernel, dtype=x.dtype)
    places = list(padding) * (2 // len(padding))
    total = convolution(r, out, x, ones, None, list(stride or kernel) * (2 // len(stride or kernel)), places, [1, 1], False, [],
                        channels)
    divisor = divisor or math.prod(kernel)
    return total if divisor == 1 else r.node("Div", total, r.value(float(divisor), x.dtype))


def integers(weight: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor] | None:
    """Return (numerators, steps [C']) with weight [C', ...] = steps · numerators; None if there are none."""
    steps = [common_step(channel, tolerance) for channel in weight.double()]
    if None in steps:
        return None
    steps = torch.tensor(steps, dtype=torch.float64)
    return (weight.double() / places(steps, weight.dim())).round(), steps


def places(values: Tensor, dims: int) -> Tensor:
    """Return values [C] as [C, 1, ...] of so many axes."""
    return values.view(-1, *[1] * (dims - 1))
