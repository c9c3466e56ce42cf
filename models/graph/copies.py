"""Modules made of other modules' layers: copies that share parameters, trees of layers, traces without unused modules."""

import operator
import warnings
from copy import deepcopy

from torch import Tensor, fx, nn


def sharing_copy(module: nn.Module, buffers: bool) -> nn.Module:
    """Return a copy with the same Parameter objects and, if asked for, the same buffers.

    Raises:
        ValueError: a tensor that is computed of parameters, as torch.nn.utils.weight_norm keeps it.
    """
    shared = (*module.parameters(), *(module.buffers() if buffers else ()))
    try:
        return deepcopy(module, {id(tensor): tensor for tensor in shared})
    except RuntimeError as error:
        raise ValueError(f"{type(module).__name__} keeps a tensor that it has computed of its parameters: call remove_weight_norm "
                         "first, or take torch.nn.utils.parametrizations") from error
    except TypeError as error:
        raise ValueError(f"{type(module).__name__} cannot be copied ({error}): keep such a value out of its attributes") from error


def tree(leaves: dict[str, nn.Module | Tensor]) -> nn.Module:
    """Return a module that holds layers and tensors at their paths."""
    root = nn.Module()
    for path, value in leaves.items():
        *containers, name = path.split(".")
        place = root
        for container in containers:
            place = place._modules.setdefault(container, nn.Module())
        kinds = {nn.Module: place._modules, nn.Parameter: place._parameters, Tensor: place._buffers}
        next(held for kind, held in kinds.items() if isinstance(value, kind))[name] = value
    return root


def register_constants_(root: nn.Module, graph: fx.Graph) -> None:
    """Turn the plain tensors that a graph reads into buffers, which move with the network but are not saved."""
    for name in {node.target for node in graph.nodes if node.op == "get_attr"}:
        container, _, leaf = name.rpartition(".")
        parent = root.get_submodule(container)
        value = getattr(parent, leaf)
        if leaf not in parent._parameters and leaf not in parent._buffers:
            delattr(parent, leaf)
            parent.register_buffer(leaf, value, persistent=False)


def drop_unused_(root: nn.Module, graph: fx.Graph) -> list[str]:
    """Remove, in place, the modules and the parameters that no call reads; name these, and those modules that have some.

    A module or parameter may have several names: it stays under all of them if a call reads it under one.

    Returns:
        the names that a warning told.
    """
    calls = [root.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    used = {id(part) for module in calls for part in module.modules()}
    tensors = {id(tensor) for module in calls for tensor in module.parameters()} | {
        id(operator.attrgetter(node.target)(root)) for node in graph.nodes if node.op == "get_attr"}
    dropped, told = [], {}
    for name, module in list(root.named_modules(remove_duplicate=False)):
        inside = name.startswith(tuple(f"{other}." for other in dropped))
        if not name or inside or not used.isdisjoint(map(id, module.modules())) or not tensors.isdisjoint(
                map(id, (*module.parameters(), *module.buffers()))):
            continue
        _remove_(root, name)
        dropped.append(name)
        if next(module.parameters(), None) is not None:
            told.setdefault(id(module), (name, "run"))
    for name, tensor in list(root.named_parameters(remove_duplicate=False)):
        if id(tensor) not in tensors and _remove_(root, name):
            told.setdefault(id(tensor), (name, "read"))
    for name, verb in told.values():
        warnings.warn(f"{name} is left out: the network does not {verb} it outside of training", stacklevel=4)
    return [name for name, _ in told.values()]


def _remove_(root: nn.Module, name: str) -> bool:
    """Remove, in place, a module or a parameter; return whether it was still there, as it may have several names."""
    container, _, leaf = name.rpartition(".")
    parent = root.get_submodule(container)
    found = hasattr(parent, leaf)
    if found:
        delattr(parent, leaf)
    return found
