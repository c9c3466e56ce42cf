"""PyTorch's operators as ONNX's: each function adds the nodes of one call and returns the name of its value.

They take (recorder, output, *arguments of the PyTorch operator). Sums and comparisons keep PyTorch's number type. onnxruntime
has no convolution in float64: see `precise`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant import common_step

from .convolutions import average_pool, bytes_as, convolution, linear_map
from .moves import (
    concatenate,
    expand,
    flip,
    index_select,
    pad,
    permute,
    pixel_shuffle,
    repeat,
    reshaped,
    same,
    select,
    shuffle,
    sliced,
    split,
    stack,
    transpose,
    unbind,
    unsqueeze,
)
from .record import Recorder

Operator = Callable[..., str | list[str]]


def arithmetic(kind: str) -> Operator:
    """Return the operator of two tensors or numbers."""

    def operator(r: Recorder, out: Tensor, a: Tensor | float, b: Tensor | float, alpha: float = 1) -> str:
        second = r.value(b, out.dtype)
        if alpha != 1:
            second = r.node("Mul", second, r.value(alpha, out.dtype))
        result = r.node(kind, r.value(a, out.dtype), second)
        if kind == "Sub" and isinstance(a, Tensor) and isinstance(b, int) and alpha == 1 and r.values.get(id(a)) in r.bytes_of:
            source, zero = r.bytes_of[r.value(a)]
            r.bytes_of[result] = source, zero + b
        return result

    return operator


def comparison(kind: str) -> Operator:
    """Return the comparison, in the type that holds both sides."""

    def operator(r: Recorder, out: Tensor, a: Tensor, b: Tensor | float) -> str:
        dtype = torch.result_type(a, b)
        return r.node(kind, r.value(a, dtype), r.value(b, dtype))

    return operator


def both(r: Recorder, out: Tensor, a: Tensor | bool, b: Tensor | bool) -> str:
    """Return a and b."""
    return r.node("And", r.value(a, torch.bool), r.value(b, torch.bool))


def unary(kind: str, **attributes: Any) -> Operator:
    """Return the operator of one tensor."""
    return lambda r, out, x, *_, **__: r.node(kind, r.value(x, out.dtype), **attributes)


def clamp(r: Recorder, out: Tensor, x: Tensor, low: float | None = None, high: float | None = None) -> str:
    """Return x within limits."""
    limits = ["" if limit is None else r.value(limit, out.dtype) for limit in (low, high)]
    return r.node("Clip", r.value(x, out.dtype), *limits)


def to_type(r: Recorder, out: Tensor, x: Tensor, **_: Any) -> str:
    """Return x in another number type."""
    result = r.value(x) if x.dtype == out.dtype else r.cast(r.value(x), out.dtype)
    if x.dtype == torch.uint8 and out.dtype.is_floating_point:
        r.bytes_of[result] = r.value(x), 0
    return result


def reduction(kind: str) -> Operator:
    """Return the operator that takes mean, sum or maximum over axes."""

    def operator(r: Recorder, out: Tensor, x: Tensor, axes: Any = None, keepdim: bool = False, **_: Any) -> str:
        axes = [axes] if isinstance(axes, int) else list(axes if axes else range(x.dim()))
        found = r.value(x, out.dtype)
        return r.node(kind, found, r.constant([axis % x.dim() for axis in axes], np.int64), keepdims=int(keepdim))

    return operator


def cumulative(r: Recorder, out: Tensor, x: Tensor, axis: int, **_: Any) -> str:
    """Return the sums so far."""
    return r.node("CumSum", r.value(x, out.dtype), r.constant(axis, np.int64))


def matrix_product(r: Recorder, out: Tensor, a: Tensor, b: Tensor) -> str:
    """Return a · b; the file holds a float32 matrix b of integers times a step, such as the 8-bit last layer, as bytes.

    DequantizeLinear would not do: onnxruntime then rounds a to bytes too.
    """
    step = None
    if id(b) not in r.values and b.dim() == 3 and b.stride(0) == 0:
        b = b[0]  # one weight for all images, whose number a file leaves open
    if id(b) not in r.values and b.dtype == torch.float32 and b.dim() == 2:
        step = common_step(b.double(), tolerance=1e-6)
    if step is None:
        return r.node("MatMul", r.value(a), r.value(b))
    numerators = bytes_as(r, (b.double() / step).round(), torch.float32)
    return r.node("Mul", r.node("MatMul", r.value(a), numerators), r.constant(step, np.float32))


def affine(r: Recorder, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> str:
    """Return a · b + bias, of a linear layer."""
    return r.node("Add", matrix_product(r, out, a, b), r.value(bias))


def normalize(r: Recorder, outs: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
              *rest: Any) -> list[str]:
    """Return a batch normalisation in eval mode as a product and a sum."""
    eps = rest[-1]
    gain = (variance.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * gain
    places = (-1, *[1] * (x.dim() - 2))
    product = r.node("Mul", r.value(x), r.value(gain.view(places), x.dtype))
    return [r.node("Add", product, r.value(shift.view(places), x.dtype))]


def max_pool(r: Recorder, outs: Any, x: Tensor, kernel: list[int], stride: list[int] = (), padding: Any = 0, dilation: Any = 1,
             _: bool = False) -> list[str]:
    """Return the maximum of each window; with `ceil_mode` or without it."""
    places = x.dim() - 2

    def each(value: Any) -> list[int]:
        value = [value] if isinstance(value, int) else list(value)
        return value * (places // len(value))

    kernel, stride, padding, dilation = each(kernel), each(stride or kernel), each(padding), each(dilation)
    # ONNX counts windows of `ceil` that PyTorch drops: the padding at the end says how many there are.
    reach = [(out - 1) * step + gap * (size - 1) + 1 for out, step, gap, size in
             zip(outs[0].shape[2:], stride, dilation, kernel, strict=True)]
    ends = [max(0, far - size - pad) for far, size, pad in zip(reach, x.shape[2:], padding, strict=True)]
    return [r.node("MaxPool", r.value(x), kernel_shape=kernel, strides=stride, pads=padding + ends, dilations=dilation)]


def where(r: Recorder, out: Tensor, condition: Tensor, a: Tensor, b: Tensor) -> str:
    """Return a where the condition holds, else b."""
    return r.node("Where", r.value(condition), r.value(a, out.dtype), r.value(b, out.dtype))


def zeros_like(r: Recorder, out: Tensor, x: Tensor, **_: Any) -> str:
    """Return zeros of the shape of x."""
    return r.node("Mul", r.value(x, out.dtype), r.value(torch.zeros((), dtype=out.dtype)))


SAME = ("alias", "clone", "detach", "contiguous", "lift_fresh", "dropout", "positive")
RESHAPED = ("view", "_unsafe_view", "reshape", "squeeze", "_reshape_alias", "flatten", "unflatten")
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}
COMPARISONS = {"ge": "GreaterOrEqual", "le": "LessOrEqual", "gt": "Greater", "lt": "Less", "eq": "Equal"}
UNARY = {"neg": "Neg", "round": "Round", "abs": "Abs", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp",
         "log": "Log", "sqrt": "Sqrt", "floor": "Floor", "hardswish": "HardSwish", "reciprocal": "Reciprocal"}
LINEAR = ("avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest1d",
          "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(SAME, same), **dict.fromkeys(RESHAPED, reshaped),
    **{name: arithmetic(kind) for name, kind in ARITHMETIC.items()},
    **{name: comparison(kind) for name, kind in COMPARISONS.items()},
    **{name: unary(kind) for name, kind in UNARY.items()},
    **{name: partial(linear_map, function=getattr(torch.ops.aten, name)) for name in LINEAR},
    **dict.fromkeys(("bitwise_and", "logical_and"), both),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update"), normalize),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), max_pool),
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d"), partial(pad, mode="reflect")),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d"), partial(pad, mode="edge")),
    "rsub": lambda r, out, a, b, alpha=1: arithmetic("Sub")(r, out, b, a, alpha),
    "clamp": clamp, "clamp_min": clamp,
    "clamp_max": lambda r, out, x, high: clamp(r, out, x, None, high),
    "hardtanh": lambda r, out, x, low=-1, high=1: clamp(r, out, x, low, high),
    "_softmax": lambda r, out, x, axis, _: r.node("Softmax", r.value(x), axis=axis),
    "_log_softmax": lambda r, out, x, axis, _: r.node("LogSoftmax", r.value(x), axis=axis),
    "_to_copy": to_type, "expand": expand, "repeat": repeat, "permute": permute, "transpose": transpose, "t": transpose,
    "unsqueeze": unsqueeze, "select": select, "index_select": index_select, "slice": sliced, "flip": flip,
    "cat": concatenate, "stack": stack, "split": split, "split_with_sizes": split, "unbind": unbind, "where": where,
    "mean": reduction("ReduceMean"), "sum": reduction("ReduceSum"), "amax": reduction("ReduceMax"), "cumsum": cumulative,
    "mm": matrix_product, "bmm": matrix_product, "addmm": affine, "constant_pad_nd": pad, "convolution": convolution,
    "avg_pool2d": average_pool, "zeros_like": zeros_like,
    "native_channel_shuffle": shuffle, "channel_shuffle": shuffle, "pixel_shuffle": pixel_shuffle}
