"""Modules made of other modules' layers: copies that share parameters, trees of layers, traces without unused modules."""

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


def drop_unused_(root: nn.Module, graph: fx.Graph) -> None:
    """Remove, in place, the modules and the parameters that no call reads; name these, and those modules that have some."""
    used = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    dropped = []
    for name, _ in list(root.named_modules()):
        if name and not any(f"{target}.".startswith(f"{name}.") or f"{name}.".startswith(f"{target}.") for target in used):
            dropped.append(name)
    for name in [name for name in dropped if name.rpartition(".")[0] not in dropped]:
        container, _, leaf = name.rpartition(".")
        module = root.get_submodule(name)
        delattr(root.get_submodule(container), leaf)
        if next(module.parameters(), None) is not None:
            warnings.warn(f"{name} is left out: the network does not run it outside of training", stacklevel=4)
    for name, _ in list(root.named_parameters(remove_duplicate=False)):
        container, _, leaf = name.rpartition(".")
        if not any(f"{name}.".startswith(f"{target}.") for target in used):
            delattr(root.get_submodule(container), leaf)
            warnings.warn(f"{name} is left out: the network does not read it outside of training", stacklevel=4)
