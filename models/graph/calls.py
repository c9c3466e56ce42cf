"""What a node of a trace calls."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

ACTIVATIONS = (nn.ReLU, nn.Hardtanh)  # the activations in a finished trace; ReLU6 is a Hardtanh
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


class FollowsMode(nn.Module):
    """A function with an argument `training`, such as dropout, that a trace would freeze."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the function in the mode of the network."""
        return self.function(*args, **kwargs, training=self.training)


def call_name(node: fx.Node) -> str:
    """Return what a node calls, as written: "conv2d", "view", or the module's name."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module that a node calls, None for a function."""
    return root.get_submodule(node.target) if node.op == "call_module" else None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
