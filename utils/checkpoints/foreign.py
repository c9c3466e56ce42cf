"""Checkpoints that are not ours: anyone's float networks, TorchVision's, and APoT's quantized layout as a start for training."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models import Facts, Network, reason_of
from models.registry import TORCHVISION
from quant import FLOAT_BITS, quantize_

from ..errors import UserError

WRAPPERS = ("model", "net", "model_state_dict", "model_state")  # names under which a file may hold its state dict
LEARNED = {".act_alpha": None, ".weight_alpha": ".weight_quantizer.alpha", ".weight_quant.wgt_alpha": ".weight_quantizer.alpha"}


def state_of(contents: Mapping[str, object]) -> Mapping[str, object]:
    """Return the state dict in the contents of a file, wherever it is."""
    return contents["state_dict"] if "state_dict" in contents else next(
        (contents[name] for name in WRAPPERS if isinstance(contents.get(name), dict)), contents)


def load_foreign(state: Mapping[str, Tensor], module: nn.Module, facts: Facts, bit: int) -> Network:
    """Return the network of a state dict with the module's own keys, loaded strictly.

    APoT's quantized files also hold `act_alpha` (the threshold of the activation that a convolution reads) and `weight_alpha`.
    Their last activation has none, so that they serve as a start for training only.

    Args:
        state: name -> tensor, without the prefix "module.".
        module: freshly built; it takes over the state dict.
        bit: bits of the activations.

    Raises:
        ValueError: names keys that are missing, unknown or of another shape; a float file for a quantized network.
    """
    learned = {key: value for key, value in state.items() if key.endswith(tuple(LEARNED))}
    if bit != FLOAT_BITS and not learned:
        raise ValueError(f"is float: --fit N quantizes it to {bit} bits and fits it on N training images, main.py --init trains it")
    load_module_(module, {key: value for key, value in state.items() if key not in learned})
    network = quantize_(Network(module, facts), bit)
    adopt_learned_(network, learned)
    network.facts = replace(network.facts, trainable_start=bool(learned))
    return network


def load_module_(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a module strictly, in place; files of PyTorch before 0.4.1 have no num_batches_tracked."""
    ours = module.state_dict()
    counts = {key: value for key, value in ours.items() if key.endswith("num_batches_tracked") and key not in state}
    try:
        module.load_state_dict({**state, **counts})
    except RuntimeError as error:
        raise ValueError(misfit(error)) from error


def misfit(error: RuntimeError) -> str:
    """Return an error of load_state_dict on one line, with at most three names of each kind."""
    return re.sub(r'((?:"[^"]*", ){3})(?:"[^"]*", )*"[^"]*"', r"\1...", " ".join(str(error).split()))[:400]


def unreadable(error: Exception) -> str:
    """Return why a file that torch.load refuses is no checkpoint, with a remedy."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if found:
        return f"holds an object of {found[1]}; only tensors and plain values are loaded: save the module's state_dict() alone"
    return f"is damaged or of no known kind ({reason_of(error)}): copy or train it again"


@torch.no_grad()
def adopt_learned_(network: Network, learned: Mapping[str, Tensor]) -> None:
    """Give a quantized network, in place, the thresholds and clips of APoT's layout.

    Raises:
        ValueError: a threshold or clip of a layer that has none; names it.
    """
    readers = threshold_of(network)
    for key, value in learned.items():
        suffix = next(suffix for suffix in LEARNED if key.endswith(suffix))
        path, ours = key.removesuffix(suffix), LEARNED[suffix]
        if ours is None and "downsample" in path:
            continue  # APoT's shortcut has a threshold of its own; ours belongs to the activation that is read
        parameter = readers.get(path) if ours is None else dict(network.named_parameters()).get(path + ours)
        if parameter is None or value.numel() != 1:
            raise ValueError(f"has unknown {key}: it holds another architecture or bit-width, choose the file or --arch and --bit "
                             "that fit")
        parameter.fill_(value.item())


def threshold_of(network: Network) -> dict[str, nn.Parameter]:
    """Return {path of a layer: threshold of the activation that it reads}."""
    names = {network.graph.values[name]: name for name in network.graph.activations}
    return {node.target: network.activation(names[node.args[0]]).threshold for unit in network.graph.parts for node in unit.nodes
            if node.op == "call_module" and node.args and node.args[0] in names and network.bit != FLOAT_BITS}


def reset_head_(network: Network, classes: int, source: object) -> None:
    """Replace the last layer of a network, read from `source`, in place, by a fresh one for another number of classes; say so.

    Raises:
        UserError: its last layer is no linear one.
    """
    heads = [path for path, region in network.graph.regions.items()
             if region == "readout" and isinstance(network.layer(path), nn.Linear)]
    if not heads:
        raise UserError(f"--init {source}: has {network.num_classes} classes, the data set {classes}, and no linear layer at its "
                        "end that could be replaced: start from a file that fits, or train from random weights")
    print(f"{source} has {network.num_classes} classes, the data set {classes}: the last layer starts afresh")
    network.set_layer(heads[-1], nn.Linear(network.layer(heads[-1]).in_features, classes))
    network.facts = replace(network.facts, num_classes=classes)


def download(arch: str) -> dict[str, Any]:
    """Return TorchVision's state dict for alexnet, vgg11 or vgg16 (with BN), or torchvision:NAME, from its cache or its site.

    Raises:
        UserError: TorchVision has no such network, it cannot be downloaded, or the file in the cache is damaged.
    """
    from torchvision import models

    name = {"alexnet": "alexnet", "vgg11": "vgg11_bn", "vgg16": "vgg16_bn"}.get(arch, arch.removeprefix(TORCHVISION))
    if name not in models.list_models(module=models):
        raise UserError(f"--arch {arch}: TorchVision has no weights for it; --init FILE starts from a checkpoint, --scratch from "
                        "random weights")
    weights = models.get_model_weights(name)
    try:
        return dict(weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True, map_location="cpu"))
    except Exception as error:  # OSError, HTTPException, RuntimeError of a wrong hash; torch.load raises anything
        file = weights.DEFAULT.url.rsplit("/", 1)[-1]
        raise UserError(f"TorchVision's {arch} cannot be downloaded to {torch.hub.get_dir()}/checkpoints, or is damaged there "
                        f"({reason_of(error)}): --init FILE starts from a copy of {file} or another network, --scratch from "
                        "random weights") from error
