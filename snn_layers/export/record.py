"""A network's operators on an example, recorded as the nodes of an ONNX graph.

The network runs once on a few images. Each operator on values that depend on them becomes nodes, so that a loop over time is
unrolled; a value that depends on weights alone becomes a constant. Axis 0 holds the batch, or axis 1 if axis 0 is time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE, torch.uint8: TensorProto.UINT8,
         torch.int8: TensorProto.INT8, torch.int16: TensorProto.INT16, torch.int32: TensorProto.INT32,
         torch.int64: TensorProto.INT64, torch.bool: TensorProto.BOOL}
Operators = dict[str, Callable[..., str | list[str]]]


class Recorder(TorchDispatchMode):
    """Records operators as nodes.

    Args:
        images: the example; its value is named "images". T is not a multiple of their number.
        operators: (recorder, output, *arguments) -> name of the value, or names, by the name of a PyTorch operator.

    Attributes:
        nodes, constants: of the graph so far.
        place: the unit that is running, for names and errors.
        bytes_of: {value: (value of bytes, their zero)}, for numbers that are bytes minus a zero.
    """

    def __init__(self, images: Tensor, operators: Operators):
        super().__init__()
        self.batch, self.operators, self.place = len(images), operators, "images"
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.bytes_of: dict[str, tuple[str, int]] = {}
        self.values: dict[int, str] = {id(images): "images"}
        self.kept: list[Any] = [images]  # a freed tensor would leave its id to another one
        self.taken: dict[str, int] = {}
        self.known: dict[Any, str] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operator, and record it if its inputs depend on the images."""
        result = function(*args, **(kwargs or {}))
        if not any(isinstance(value, Tensor) and id(value) in self.values for value in tree_leaves((args, kwargs or {}))):
            return result
        name = function.overloadpacket.__name__
        if name not in self.operators:
            raise ValueError(f"{self.place}: the operator {name} has no known counterpart in ONNX")
        outputs = self.operators[name](self, result, *args, **(kwargs or {}))
        names = [outputs] if isinstance(outputs, str) else outputs
        found = result if isinstance(result, tuple | list) else [result]
        for tensor, value in zip(found[:len(names)], names, strict=True):  # max-pooling's indices have no name
            self.values[id(tensor)] = value
            self.kept.append(tensor)
        return result

    def name(self, kind: str) -> str:
        """Return a name that is not taken yet."""
        stem = f"{self.place}/{kind}"
        self.taken[stem] = self.taken.get(stem, 0) + 1
        return f"{stem}_{self.taken[stem]}"

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return its output's name, or names."""
        names = [self.name(kind) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant, unless the same one is there; return its name."""
        array = np.array(value, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = self.name("constant")
            self.constants.append(numpy_helper.from_array(array, self.known[key]))
        return self.known[key]

    def value(self, x: Tensor | float, dtype: torch.dtype | None = None) -> str:
        """Return the name of a tensor or number, cast to a type where it is another."""
        if not isinstance(x, Tensor):
            return self.constant(torch.tensor(x, dtype=dtype).numpy())
        if id(x) not in self.values:
            return self.constant((x if dtype is None else x.to(dtype)).numpy())
        value = self.values[id(x)]
        return value if dtype in (None, x.dtype) else self.cast(value, dtype)

    def cast(self, value: str, dtype: torch.dtype) -> str:
        """Return a value in another type."""
        return self.node("Cast", value, to=TYPES[dtype])

    def shape(self, x: Tensor) -> str:
        """Return the shape of a result as a constant, -1 where the batch is."""
        axis = self.batch_axis(x)
        return self.constant([-1 if at == axis else size for at, size in enumerate(x.shape)], np.int64)

    def batch_axis(self, x: Tensor) -> int:
        """Return the axis that holds the batch, and with it perhaps time.

        Raises:
            ValueError: neither axis 0 nor 1.
        """
        for axis in (0, 1):
            if axis < x.dim() and x.shape[axis] % self.batch == 0:
                return axis
        raise ValueError(f"{self.place}: a tensor of shape {list(x.shape)} holds {self.batch} images neither in axis 0 nor in 1")


class CircularPadding(TorchFunctionMode):
    """Pads circularly by slices and concatenation, since PyTorch writes into a new tensor, which cannot be followed."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call a function."""
        if function is F.pad and (args[2:3] or [(kwargs or {}).get("mode")])[0] == "circular":
            x, amounts = args[0], args[1] if len(args) > 1 else kwargs["pad"]
            for axis, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
                x = around(x, x.dim() - 1 - axis, low, high)
            return x
        return function(*args, **(kwargs or {}))


def around(x: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Return x with its last `low` places put before an axis, and its first `high` ones after it."""
    size = x.shape[axis]
    return torch.cat((x.narrow(axis, size - low, low), x, x.narrow(axis, 0, high)), axis)


def record(network: nn.Module, images: Tensor, operators: Operators) -> tuple[list, list, dict[str, Tensor]]:
    """Return (nodes, constants, outputs) of a network on an example.

    Args:
        network: maps images to a dict of outputs; calls its attribute `at`, set here, with the name of what runs next.
    """
    recorder = Recorder(images, operators)
    network.at = lambda place: setattr(recorder, "place", place)
    with torch.no_grad(), recorder, CircularPadding():
        outputs = network(images)
    for name, tensor in outputs.items():
        recorder.nodes.append(helper.make_node("Identity", [recorder.value(tensor)], [name], name=name))
    return recorder.nodes, recorder.constants, outputs
