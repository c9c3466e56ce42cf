"""Operators that move values without computing, as ONNX's; see operators.py."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .record import Recorder

FAR = 2**62  # the end of an axis


def same(r: Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> str:
    """Return the value itself."""
    return r.value(x)


def reshaped(r: Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> str:
    """Return the value with the shape of the output: views, flattening, squeezing."""
    return r.node("Reshape", r.value(x), r.shape(out))


def expand(r: Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> str:
    """Return x repeated along axes of size 1, or new first ones."""
    old = [1] * (out.dim() - x.dim()) + list(x.shape)
    sizes = [1 if before == after else after for before, after in zip(old, out.shape, strict=True)]
    return r.node("Expand", r.value(x), r.constant(sizes, np.int64))


def repeat(r: Recorder, out: Tensor, x: Tensor, times: list[int]) -> str:
    """Return copies of x side by side."""
    value, new = r.value(x), range(len(times) - x.dim())
    if new:
        value = r.node("Unsqueeze", value, r.constant(new, np.int64))
    return r.node("Tile", value, r.constant(times, np.int64))


def permute(r: Recorder, out: Tensor, x: Tensor, order: list[int]) -> str:
    """Return x with its axes in another order."""
    return r.node("Transpose", r.value(x), perm=[axis % x.dim() for axis in order])


def transpose(r: Recorder, out: Tensor, x: Tensor, first: int = 0, second: int = 1) -> str:
    """Return x with two axes exchanged."""
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return permute(r, out, x, order)


def unsqueeze(r: Recorder, out: Tensor, x: Tensor, axis: int) -> str:
    """Return x with a new axis."""
    return r.node("Unsqueeze", r.value(x), r.constant([axis % out.dim()], np.int64))


def select(r: Recorder, out: Tensor, x: Tensor, axis: int, index: int) -> str:
    """Return one place of an axis."""
    return r.node("Gather", r.value(x), r.constant(index, np.int64), axis=axis)


def index_select(r: Recorder, out: Tensor, x: Tensor, axis: int, index: Tensor) -> str:
    """Return places of an axis."""
    return r.node("Gather", r.value(x), r.value(index), axis=axis)


def sliced(r: Recorder, out: Tensor, x: Tensor, axis: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> str:
    """Return a range of an axis."""
    limits = [r.constant([value], np.int64) for value in (start or 0, FAR if end is None else min(end, FAR), axis, step)]
    return r.node("Slice", r.value(x), *limits)


def flip(r: Recorder, out: Tensor, x: Tensor, axes: list[int]) -> str:
    """Return x backwards along axes."""
    limits = [r.constant([value] * len(axes), np.int64) for value in (-1, -FAR)]
    return r.node("Slice", r.value(x), *limits, r.constant([axis % x.dim() for axis in axes], np.int64),
                  r.constant([-1] * len(axes), np.int64))


def concatenate(r: Recorder, out: Tensor, parts: list[Tensor], axis: int = 0) -> str:
    """Return parts joined along an axis."""
    return r.node("Concat", *(r.value(part, out.dtype) for part in parts), axis=axis)


def stack(r: Recorder, out: Tensor, parts: list[Tensor], axis: int = 0) -> str:
    """Return parts joined along a new axis."""
    place = r.constant([axis % out.dim()], np.int64)
    return r.node("Concat", *(r.node("Unsqueeze", r.value(part, out.dtype), place) for part in parts), axis=axis % out.dim())


def split(r: Recorder, outs: list[Tensor], x: Tensor, sizes: Any, axis: int = 0) -> list[str]:
    """Return the parts of an axis."""
    sizes = r.constant([part.shape[axis] for part in outs], np.int64)
    found = r.node("Split", r.value(x), sizes, outputs=len(outs), axis=axis)
    return [found] if isinstance(found, str) else found


def unbind(r: Recorder, outs: list[Tensor], x: Tensor, axis: int = 0) -> list[str]:
    """Return the places of an axis, one by one."""
    return [select(r, out, x, axis, index) for index, out in enumerate(outs)]


def pad(r: Recorder, out: Tensor, x: Tensor, amounts: list[int], value: float = 0, mode: str = "constant") -> str:
    """Return x with a border."""
    pairs = [(0, 0)] * (x.dim() - len(amounts) // 2) + list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    ends = r.constant([*(low for low, _ in pairs), *(high for _, high in pairs)], np.int64)
    inputs = [r.value(value, x.dtype)] if mode == "constant" else []
    return r.node("Pad", r.value(x), ends, *inputs, mode=mode)


def shuffle(r: Recorder, out: Tensor, x: Tensor, groups: int) -> str:
    """Return channels dealt from their groups in turn."""
    order = torch.arange(x.shape[1]).view(groups, -1).T.flatten()
    return r.node("Gather", r.value(x), r.value(order), axis=1)


def pixel_shuffle(r: Recorder, out: Tensor, x: Tensor, factor: int) -> str:
    """Return channels laid out as places."""
    if x.dtype == torch.float32:
        return r.node("DepthToSpace", r.value(x), blocksize=factor, mode="CRD")
    return r.cast(r.node("DepthToSpace", r.cast(r.value(x), torch.float32), blocksize=factor, mode="CRD"), x.dtype)
