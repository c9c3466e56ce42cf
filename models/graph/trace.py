"""Any nn.Module as a graph of calls: torch.fx traces it, and each call of an activation gets a module of its own."""

import inspect
import warnings
from collections.abc import Mapping
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_aggregate

from ..errors import reason_of
from .affine import NORMS, WEIGHTED
from .calls import (
    ACTIVATIONS,
    POOLS,
    FollowsMode,
    Mode,
    argument,
    call_name,
    called,
    caller,
    clip_of,
    given_by,
    plain_kind,
    pool_arguments,
)
from .copies import drop_unused_, register_constants_, sharing_copy

VIEWS = ("getitem", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "chunk", "split", "unbind", "narrow",
         "select", "squeeze", "unsqueeze", "expand")
INPUTS = ("input", "tensors", "tensor")  # names of the first argument of a call


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return (getattr(module, "leaf", False) or super().is_leaf_module(module, name)
                or (isinstance(module, (*WEIGHTED, *NORMS)) and plain_kind(module) is not type(module)))


def trace(module: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Return a copy of a module that shares its parameters, and the graph of its calls in eval mode.

    In the graph, each call of a ReLU (clipped or not, module or function) calls a module of its own. The first call of a module
    keeps its name, the k-th one gets the suffix `_k`; a function becomes `activation` in the module that calls it. Max-pooling
    is a module too, and moves before its activation if nothing else reads that: max(Q(x)) = Q(max(x)). No call works in place,
    and a call that depends on `training` follows the mode; control flow that does is told, as it is that of eval mode. A module
    with the attribute `leaf = True` is one call, and so is a subclass of a layer that changes nothing of it.

    Raises:
        ValueError: control flow that cannot be traced, several inputs, an assignment to part of a tensor.
    """
    modes = {name: child.training for name, child in module.named_modules()}
    copy = sharing_copy(module, buffers=False).eval()
    asked = {name: Mode() for name, _ in copy.named_modules()}
    for name, child in copy.named_modules():
        child.training = asked[name]
    _, *others = inspect.signature(copy.forward).parameters.values()
    missing = [p.name for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing:
        raise ValueError(f"{type(module).__name__} takes {', '.join(missing)} beside its images: give them defaults")
    try:
        graph = _Tracer().trace(copy, {p.name: p.default for p in others if p.default is not p.empty})
    except Exception as error:  # the user's code runs here
        raise ValueError(f"{type(module).__name__} cannot be traced ({_reason(error)}): {_remedy(error)}") from error
    for name, child in copy.named_modules():
        child.training = modes[name]
    rewriter = _Rewriter(copy, graph, asked)
    rewriter.rewrite()
    register_constants_(copy, graph)
    told = drop_unused_(copy, graph)
    for name in rewriter.differing:
        if not any(other.startswith(f"{name}." if name else "") for other in told):
            warnings.warn(f"{name or type(module).__name__} does otherwise in training, which is left out: the attribute leaf = "
                          "True, with affine_in_spikes = True if it is affine, keeps such a module whole", stacklevel=3)
    return copy, graph


def _reason(error: Exception) -> str:
    """Return the line of the user's code at which a trace failed, and why."""
    frames = [frame for frame in inspect.getinnerframes(error.__traceback__) if "torch" not in frame.filename.split("/")[-4:]
              and "/torch/" not in frame.filename and frame.filename != __file__]
    return (f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else "") + reason_of(error)


def _remedy(error: Exception) -> str:
    """Return what to do about a trace that failed."""
    if f"not {Mode.__name__}" in str(error):
        return "pass self.training to functions of torch.nn.functional alone"
    return ("take control flow that depends on values out of forward, or put it into a module with the attribute leaf = True; "
            "build a tensor with torch.cat or torch.where instead of assigning to part of it")


class _Rewriter:
    """The changes to a fresh trace, in place; see `trace`."""

    def __init__(self, root: nn.Module, graph: fx.Graph, asked: Mapping[str, Mode]):
        self.root, self.graph, self.asked = root, graph, asked
        self.followed: set[str] = set()  # modules of which a call follows the mode
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.calls: dict[str, int] = {}  # of each activation's module

    def rewrite(self) -> None:
        for node in list(self.graph.nodes):
            if not node.args and (named := next((name for name in INPUTS if name in node.kwargs), None)):
                node.args, node.kwargs = (node.kwargs[named],), {key: node.kwargs[key] for key in node.kwargs if key != named}
            self._functional(node)
        for node in list(self.graph.nodes):
            if isinstance(called(node, self.root), POOLS):
                self._before(node)
        for module in (module for module in self.root.modules() if hasattr(module, "inplace")):
            module.inplace = False

    @property
    def differing(self) -> list[str]:
        """Return the modules whose control flow depends on the mode, which no call follows."""
        return [name for name, mode in self.asked.items() if mode.asked and name not in self.followed]

    def _functional(self, node: fx.Node) -> None:
        """Replace a functional call by that of a module where it needs one, and an in-place call by one that is not."""
        module, name = called(node, self.root), call_name(node)
        clip = clip_of(node, self.root)
        in_place = (node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")) or bool(
            getattr(module, "inplace", False) or node.kwargs.get("inplace"))
        if clip is not None:
            new = self._activation(node, module, clip)
        elif module is None and name in _POOL_MODULES:
            new = self._call(node, _POOL_MODULES[name](**pool_arguments(node)), self._name(node, "pool"))
        elif name == "view" and node.op == "call_method" and not isinstance(argument(node, 1, "dtype"), torch.dtype):
            node.target, new = "reshape", node  # a value may have any memory format
        elif node.op == "call_function" and self._follows((given := given_by(node)).get("training"), node):
            self.followed.add(caller(node))
            kwargs = {key: value for key, value in list(given.items())[1:] if key not in ("training", "inplace")}
            new = self._call(node, FollowsMode(node.target), self._name(node, name), kwargs)
        else:
            new = node
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), self._plain)
            if in_place and module is None and name.endswith("_"):
                plain = name.rstrip("_")
                node.target = plain if node.op == "call_method" else getattr(torch, plain, None) or getattr(F, plain, node.target)
            elif in_place and module is None:
                node.kwargs = {**node.kwargs, "inplace": False}
        if in_place:  # later readers of the argument see the result
            source = node.all_input_nodes[0]
            self._refuse_part(node, source)
            source.replace_all_uses_with(new, lambda user: self.order.get(user, -1) > self.order[node])
        if new is not node:
            node.replace_all_uses_with(new)
            self.graph.erase_node(node)

    def _follows(self, training: Any, node: fx.Node) -> bool:
        """Return whether an argument `training` follows the mode: it is the module's, or the module asks for its mode."""
        return isinstance(training, Mode) or (training is False and self.asked[caller(node)].asked)

    def _plain(self, value: Any) -> Any:
        """Return an argument; a mode that no call follows as False, noted."""
        return bool(value) if isinstance(value, Mode) else value

    def _refuse_part(self, node: fx.Node, source: fx.Node) -> None:
        """Raise ValueError if a call in place changes a part of a tensor, or another form of it, that is read whole later."""
        base = source
        while call_name(base) in VIEWS:
            base = base.all_input_nodes[0]
        if base is not source and any(self.order.get(user, -1) > self.order[node] for user in base.users):
            raise ValueError(f"{node.name} works in place on a view of {base.name}, which is read again later: leave inplace out")

    def _activation(self, node: fx.Node, module: nn.Module | None, clip: float) -> fx.Node:
        fresh = nn.ReLU() if clip == inf else nn.Hardtanh(0.0, clip)
        if module is None:
            return self._call(node, fresh, self._name(node, "activation"))
        self.calls[node.target] = self.calls.get(node.target, 0) + 1
        count = self.calls[node.target]
        return node if count == 1 else self._call(node, fresh, self._unused(f"{node.target}_{count}"))

    def _call(self, node: fx.Node, module: nn.Module, name: str, kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Return the call of a new module with the input of `node`."""
        container, _, leaf = name.rpartition(".")
        parent = self.root.get_submodule(container)
        parent.add_module(leaf, module.train(parent.training))
        with self.graph.inserting_after(node):
            new = self.graph.call_module(name, (argument(node, 0, "input"),), kwargs)
        self.order[new] = self.order[node]
        return new

    def _name(self, node: fx.Node, leaf: str) -> str:
        """Return an unused name in the module whose forward calls a function."""
        return self._unused(f"{place}.{leaf}" if (place := caller(node)) else leaf)

    def _unused(self, name: str) -> str:
        container, _, leaf = name.rpartition(".")
        parent, free, number = self.root.get_submodule(container), leaf, 1
        while hasattr(parent, free):
            number += 1
            free = f"{leaf}_{number}"
        return f"{container}.{free}" if container else free

    def _before(self, pool: fx.Node) -> None:
        """Move a pooling before the activation that it reads, if nothing else reads that."""
        activation = pool.args[0]
        if isinstance(called(activation, self.root), ACTIVATIONS) and len(activation.users) == 1:
            with self.graph.inserting_before(activation):
                moved = self.graph.call_module(pool.target, (activation.args[0],))
            pool.replace_all_uses_with(activation)
            activation.args = (moved,)
            self.graph.erase_node(pool)
            self._before(moved)


_POOL_MODULES = {f"{kind}max_pool{n}d": pool for kind, pools in (("", POOLS[:3]), ("adaptive_", POOLS[3:]))
                 for n, pool in enumerate(pools, start=1)}
