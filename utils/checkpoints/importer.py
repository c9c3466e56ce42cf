"""Published checkpoints: their names mapped to ours, then loaded strictly."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import models
from models import BasicBlock, Facts, Network, Stack, Unit
from quant import FLOAT_BITS, quantize_

from .foreign import load_foreign, misfit

CLIP, APOT_CLIP = "weight_quantizer.alpha", "weight_quant.wgt_alpha"  # of a convolution: ours, APoT's
MAX_NAMED = 4  # keys that an error message names


def load_published(state: Mapping[str, Tensor], arch: str | None, bit: int | None, dataset: str | None) -> Network:
    """Return the network of a published state dict (Fast-SNN's CIFAR and ImageNet networks, APoT's ResNets, TorchVision's).

    The state dict of a network that is not ours has the module's own names, see `load_foreign`.

    Args:
        state: published name -> tensor; names may have the prefix "module.", and "_orig_mod." of torch.compile.
        arch: architecture.
        bit: bits of the activations; None means float if the file has no thresholds.
        dataset: None chooses by the number of classes.

    Raises:
        ValueError: not a network of this architecture and bit-width; names unknown or missing keys.
    """
    state = {key.replace("_orig_mod.", "").removeprefix("module."): value for key, value in state.items()}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no state dict of tensors: it is no published checkpoint")
    if arch is None:
        raise ValueError("does not say its architecture: pass arch (--arch)")
    if bit is None and any(key.endswith("act_alpha") for key in state):
        raise ValueError("does not say its bit-width: pass bit (--bit)")
    last = [len(value) for value in state.values() if value.ndim > 0][-1:]  # of a head that is not a linear layer
    classes = [len(value) for value in state.values() if value.ndim == 2][-1:] or last or [10]
    dataset = dataset or {100: "cifar100", 1000: "imagenet"}.get(classes[0], "cifar10")
    count = models.CLASSES.get(dataset, classes[0])
    if classes[0] != count and not _fits(state, models.module(arch, dataset, count)):  # a head may stand anywhere
        raise ValueError(f"has {classes[0]} classes, {dataset} has {count}: choose a file or data set that fits")
    bit = FLOAT_BITS if bit is None else bit
    module, facts = models.module(arch, dataset, count), Facts(arch, dataset, count, models.recipe(arch, dataset))
    if not isinstance(module, Stack):
        return load_foreign(state, module, facts, bit)
    network = quantize_(Network(module, facts), bit)
    incomplete = False
    residual = any(isinstance(module, BasicBlock) for module in network.modules())
    if "features.0.weight" in state and not residual:
        # TorchVision's networks pool where these stride, and AlexNet's has no BN: a start for training only.
        layout, incomplete = partial(torchvision_layout, state), True
    elif residual and "conv1.weight" in state:
        # A block of APoT's has a threshold of its own for the shortcut's input; ours has one threshold for its input.
        state = {key: value for key, value in state.items() if not key.endswith("downsample.0.act_alpha")}
        layout = apot_layout
        incomplete = network.bit != FLOAT_BITS
    else:
        layout = resnet_layout if residual else plain_layout
    names = published_names(network, dict(layout(network)))
    _check_names(state, names)
    merged = network.state_dict() | {ours: state[theirs] for ours, theirs in names.items()}
    load_strictly_(network, merged)
    network.facts = replace(network.facts, trainable_start=incomplete)
    return network


def load_strictly_(network: Network, state: Mapping[str, Tensor]) -> None:
    """Load a state dict in place; it must have every key, of the right shape and kind, and no other.

    An activation gets the bias that calibration gave it, if the state dict has one.

    Raises:
        ValueError: names the first keys that are missing, unknown, of another shape, or not dense numbers of the right kind.
    """
    for path in network.graph.activations.values():
        bias = state.get(f"{path}.bias")
        if isinstance(bias, Tensor) and network.bit != FLOAT_BITS:
            network.layer(path).bias = nn.Parameter(torch.zeros_like(bias))
    for key, ours in network.state_dict().items():
        theirs = state.get(key)
        if isinstance(theirs, Tensor) and (theirs.layout, theirs.is_floating_point()) != (ours.layout, ours.is_floating_point()):
            raise ValueError(f"holds {key} as {theirs.dtype}, {theirs.layout}; it should be {ours.dtype}, {ours.layout}")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(misfit(error)) from error


def published_names(network: Network, prefixes: Mapping[str, str | None]) -> dict[str, str]:
    """Return {our key: published key}, given {our module or parameter: its published prefix or name}.

    A key takes the longest prefix that fits; None marks a part that a layout lacks: it stays as initialised.
    """
    names = {}
    for key in network.state_dict():
        ours = max((p for p in prefixes if key == p or key.startswith(p + ".")), key=len)
        if prefixes[ours] is not None:
            names[key] = prefixes[ours] + key[len(ours):]
    return names


def units_of(network: Network) -> list[tuple[str, Unit]]:
    """Return (name, unit) of a network by name, in forward order."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, Unit)]


def plain_layout(network: Network) -> Iterator[tuple[str, str]]:
    """Yield the prefixes of alex, vgg11, vgg16, alexnet: layer{i}.block.{0: conv, 1: bn, 2: activation}, from 1."""
    units = units_of(network)
    for index, (name, _) in enumerate(units, start=1):
        yield from _block(name, f"layer{index}.block")
    yield "head", f"layer{len(units) + 1}.block"


def _block(name: str, block: str) -> Iterator[tuple[str, str]]:
    return _layers(name, f"{block}.0", f"{block}.1", APOT_CLIP, f"{block}.2.act_alpha")


def _layers(name: str, conv: str, bn: str, clip: str, threshold: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the prefixes of a unit or a shortcut; `clip` is the name of the clip in the published convolution."""
    yield f"{name}.conv", conv
    yield f"{name}.conv.{CLIP}", f"{conv}.{clip}"
    yield f"{name}.bn", bn
    if threshold is not None:
        yield f"{name}.activation.threshold", threshold


def blocks(network: Network) -> Iterator[tuple[str, str, BasicBlock]]:
    """Yield (our name, "layer{stage}.{index}", block) of a residual network; a stage begins where the shape changes."""
    stage, index = 1, -1
    for name, block in network.named_modules():
        if isinstance(block, BasicBlock):
            starts_stage = block.part2.shortcut is not None and index >= 0
            stage, index = (stage + 1, 0) if starts_stage else (stage, index + 1)
            yield name, f"layer{stage}.{index}", block


def resnet_layout(network: Network) -> Iterator[tuple[str, str]]:
    """Yield the prefixes of Fast-SNN's residual networks: layer0, layer{1-3}.{j}.part{1,2}, layer4."""
    stem, _ = units_of(network)[0]
    yield from _block(stem, "layer0.block")
    for name, published, block in blocks(network):
        for part in ("part1", "part2"):
            theirs = f"{published}.{part}"
            yield from _layers(f"{name}.{part}", f"{theirs}.conv", f"{theirs}.bn", "weight_alpha", f"{theirs}.relu.act_alpha")
        if block.part2.shortcut is not None:
            shortcut = f"{published}.part2.downsample"
            yield from _layers(f"{name}.part2.shortcut", f"{shortcut}.0", f"{shortcut}.1", "weight_alpha")
    yield "head", "layer4.block.2"


def apot_layout(network: Network) -> Iterator[tuple[str, str | None]]:
    """Yield the prefixes of APoT's ResNets, where a threshold belongs to the conv that reads the activation.

    The last activation feeds no conv, so that its threshold stays as initialised: such a file is a start for training.
    """
    writer, _ = units_of(network)[0]
    yield from _layers(writer, "conv1", "bn1", APOT_CLIP)
    for name, published, block in blocks(network):
        for part, k in (("part1", 1), ("part2", 2)):
            yield f"{writer}.activation.threshold", f"{published}.conv{k}.act_alpha"
            writer = f"{name}.{part}"
            yield from _layers(writer, f"{published}.conv{k}", f"{published}.bn{k}", APOT_CLIP)
        if block.part2.shortcut is not None:
            yield from _layers(f"{writer}.shortcut", f"{published}.downsample.0", f"{published}.downsample.1", APOT_CLIP)
    yield f"{writer}.activation.threshold", None
    yield "head", "fc"


def torchvision_layout(state: Mapping[str, Tensor], network: Network) -> Iterator[tuple[str, str | None]]:
    """Yield the prefixes of TorchVision's alexnet and vgg*_bn: features.{i} and classifier.{i}, numbered with their ReLUs.

    Raises:
        ValueError: another number of layers.
    """
    def numbered(part: str, dimensions: int) -> list[str]:
        found = [key.split(".")[1] for key, value in state.items()
                 if key.startswith(f"{part}.") and key.endswith(".weight") and value.ndim == dimensions]
        return [f"{part}.{number}" for number in sorted(found, key=int)]

    convs, norms, linears = numbered("features", 4), numbered("features", 1), numbered("classifier", 2)
    units = units_of(network)
    spatial = [name for name, unit in units if isinstance(unit.conv, nn.Conv2d)]
    if (len(convs), len(linears)) != (len(spatial), len(units) - len(spatial) + 1) or len(norms) not in (0, len(convs)):
        raise ValueError(f"has {len(convs)} convolutions, {len(norms)} BN and {len(linears)} linear layers: another network")
    for (name, _), published in zip(units, convs + linears[:-1], strict=True):
        yield f"{name}.conv", published
    for index, (name, _) in enumerate(units):
        yield f"{name}.bn", norms[index] if index < len(norms) else None
    yield "head", linears[-1]


def _fits(state: Mapping[str, Tensor], module: nn.Module) -> bool:
    return all(name in state and state[name].shape == value.shape for name, value in module.named_parameters())


def _check_names(state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    unknown = [key for key in state if key not in set(names.values())]
    missing = [key for key in names.values() if key not in state]
    for kind, keys in (("lacks", missing), ("has unknown", unknown)):
        if keys:
            more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
            raise ValueError(f"{kind} {', '.join(keys[:MAX_NAMED])}{more}: it holds another architecture or bit-width, "
                             "choose the file or --arch and --bit that fit")
