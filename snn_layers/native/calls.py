"""The passes of passes.cpp on tensors; each returns None where it cannot take them: no compiler, a GPU, another type."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant import compiled

from ..functional import HALF
from .library import library

SOURCE = Path(__file__).with_name("passes.cpp")
TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32, torch.float64)  # as in passes.cpp
STORED = (torch.uint8, torch.int8, torch.float32, torch.float64)  # of spikes
Count, Number = ctypes.c_int64, ctypes.c_double


class Array(ctypes.Structure):
    """The memory of a tensor, in order, and its type."""

    _fields_ = (("data", ctypes.c_void_p), ("type", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> "Array":
        """Return the memory of a contiguous tensor, which must outlive it."""
        return cls(tensor.data_ptr(), TYPES.index(tensor.dtype))


def run(native: Callable[..., Tensor | None], function: Callable[..., Tensor], compile: bool, *given: Any) -> Tensor:
    """Return what a pass in C++ computes; where it cannot, what the function does, compiled by torch.compile if wanted."""
    found = native(*given)
    return (compiled(function) if compile else function)(*given) if found is None else found


def fire(accumulator: Tensor, second: Tensor | None, constants: Tensor, time_steps: int, signed: bool, delay: int, zero: int,
         dtype: torch.dtype, start: float = HALF, *others: Tensor, currents: Tensor | None = None) -> Tensor | None:
    """Return what `fire` of fused.py does; with `currents` [3 + others, T, C] float64 what `fire_steps` does."""
    found = passes(dtype, accumulator, second, *others)
    if found is None or (currents is None and accumulator.dtype != constants.dtype):
        return None
    planes, rows, channels = accumulator.shape
    out = torch.empty(time_steps, rows, channels, dtype=dtype)
    terms = Terms(accumulator, second, others)
    constants, currents = constants.contiguous(), None if currents is None else currents.contiguous()
    found.fire(*terms.given, Array.of(out), ctypes.c_float(zero), Count(planes), Array.of(constants), Count(len(constants)),
               Count(constants.shape[2] > 1), None if currents is None else pointer(currents), Count(time_steps), Count(signed),
               Count(delay), Number(start))
    return out


def fire_steps(accumulator: Tensor, second: Tensor | None, currents: Tensor, constants: Tensor, time_steps: int, signed: bool,
               delay: int, zero: int, dtype: torch.dtype, start: float = HALF, *others: Tensor) -> Tensor | None:
    """Return what `fire_steps` of fused.py does."""
    return fire(accumulator, second, constants, time_steps, signed, delay, zero, dtype, start, *others, currents=currents)


def fire_levels(accumulator: Tensor, second: Tensor | None, currents: Tensor, constants: Tensor, most: int, zero: int,
                dtype: torch.dtype, *others: Tensor) -> Tensor | None:
    """Return what `fire_levels` of fused.py does."""
    found = passes(dtype, accumulator, second, *others)
    if found is None:
        return None
    out = torch.empty(accumulator.shape, dtype=dtype)
    terms, scales = Terms(accumulator, second, others), currents.flatten(1).contiguous()
    found.fire_levels(*terms.given, Array.of(out), ctypes.c_float(zero), pointer(scales), Count(len(scales)),
                      Count(scales.shape[1] > 1), Number(constants[0, 0, 0].item()), Number(most))
    return out


def tally(spikes: Tensor, values: Tensor, units: Tensor, zero: int, ann_zero: int) -> Tensor | None:
    """Return what `tally` of analysis.py does."""
    found = passes(torch.float32, spikes, values)
    if found is None:
        return None
    spikes, values, sums = spikes.contiguous(), values.contiguous(), torch.empty(3, dtype=torch.float64)
    numbers = map(ctypes.c_float, (*units.tolist(), zero, ann_zero))
    found.tally(Array.of(spikes), Count(len(spikes)), Count(values.numel()), Array.of(values), *numbers, pointer(sums))
    return sums.float()


class Terms:
    """The terms of a current as arrays; the tensors stay as long as this object does."""

    def __init__(self, accumulator: Tensor, second: Tensor | None, others: Sequence[Tensor]):
        self.tensors = [term.contiguous() for term in (accumulator, *(() if second is None else (second, *others)))]
        first, *more = map(Array.of, self.tensors)
        _, rows, channels = accumulator.shape
        self.given = first, (Array * len(more))(*more), Count(len(more)), Count(rows), Count(channels)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Return the memory of a contiguous tensor, which must outlive it."""
    return ctypes.c_void_p(tensor.data_ptr())


def passes(dtype: torch.dtype, *tensors: Tensor | None) -> ctypes.CDLL | None:
    """Return the library if it takes these tensors and can store spikes as `dtype`."""
    given = [tensor for tensor in tensors if tensor is not None]
    fit = all(type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.dtype in TYPES and tensor.numel()
              and not (tensor.requires_grad and torch.is_grad_enabled()) for tensor in given)
    return library(SOURCE) if fit and dtype in STORED else None
