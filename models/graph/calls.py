"""What a node of a trace calls."""

import inspect
import operator
from collections.abc import Callable
from itertools import takewhile
from math import inf
from typing import Any

from torch import Tensor, fx, nn

ACTIVATIONS = (nn.ReLU, nn.Hardtanh)  # the activations in a finished trace; ReLU6 is a Hardtanh
POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)

# function: its lower and upper limit, or (name, default) of the argument that holds it
CLIPS = {"relu": (0, None), "relu6": (0, 6), "clamp_min": (("min", 0), None), "hardtanh": (("min_val", -1), ("max_val", 1)),
          "clamp": (("min", None), ("max", None)), "clip": (("min", None), ("max", None))}


class Mode(int):
    """The attribute `training` of a module during its trace: 0, and it notes whether the control flow depends on it."""

    asked = False

    def __bool__(self) -> bool:
        self.asked = True
        return False


class FollowsMode(nn.Module):
    """A function with an argument `training`, such as dropout, that a trace would freeze."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the function in the mode of the network."""
        return self.function(*args, **kwargs, training=self.training)


def plain_kind(module: nn.Module) -> type[nn.Module]:
    """Return the class of PyTorch that computes what a module does, if its own is a subclass that changes nothing of it."""
    own = list(takewhile(lambda kind: not kind.__module__.startswith("torch."), type(module).__mro__))
    plain = type(module).__mro__[len(own)]
    named = {name for kind in own for name in vars(kind) if not name.startswith("__")} - {"extra_repr", "reset_parameters"}
    return type(module) if any(hasattr(plain, name) for name in named) else plain


def call_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls: "conv2d", "view"; empty for another node."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module that a node calls, None for a function."""
    return root.get_submodule(node.target) if node.op == "call_module" else None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def caller(node: fx.Node) -> str:
    """Return the path of the module whose forward makes a call."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def given_by(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a function by name; empty for one without a signature."""
    try:
        return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return {}


def pool_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a max-pooling function by name, beside its input.

    Raises:
        ValueError: one of them is the size of a value.
    """
    names = ("output_size",) if call_name(node).startswith("adaptive") else POOL_ARGUMENTS
    found = {key: argument(node, position, key) for position, key in enumerate(names, start=1)}
    given = {key: value for key, value in found.items() if value is not None}
    for key, value in given.items():
        if any(isinstance(part, fx.Node) for part in (value if isinstance(value, tuple | list) else (value,))):
            raise ValueError(f"{node.name} takes its {key} from the size of a value: write numbers, or, for a whole map, "
                             "adaptive_max_pool2d")
    return given


def clip_of(node: fx.Node, root: nn.Module) -> float | None:
    """Return where the ReLU that a node calls is clipped, infinity without a clip; None for another call."""
    module = called(node, root)
    if module is not None:
        if isinstance(module, nn.Hardtanh):
            return float(module.max_val) if module.min_val == 0 else None
        return inf if isinstance(module, nn.ReLU) else None
    name = call_name(node).rstrip("_")
    if name not in CLIPS:
        return None
    low, high = (argument(node, place, *limit) if isinstance(limit, tuple) else limit
                 for place, limit in enumerate(CLIPS[name], start=1))
    return inf if low == 0 and high is None else _number(high, root) if _number(low, root) == 0 else None


def _number(value: Any, root: nn.Module) -> float | None:
    """Return a number, or the value of a parameter or buffer with one element."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        value = operator.attrgetter(value.target)(root)
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None
