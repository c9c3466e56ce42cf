"""Float networks by name: the registry of builders and of the published quantization recipes."""

from collections.abc import Callable
from functools import partial

from torch import nn

from . import plain, resnet
from .affine import NORMS, WEIGHTED
from .graph import INPUT, Graph, Part, live, mean_over_time, moving
from .network import Facts, Network, Recipe, Values, tree
from .unit import BasicBlock, Shortcut, Stack, Unit

__all__ = ["CLASSES", "INPUT", "NORMS", "REGISTRY", "WEIGHTED", "BasicBlock", "Facts", "Graph", "Network", "Part", "Recipe",
           "Shortcut", "Stack", "Unit", "Values", "architectures", "build", "family", "live", "mean_over_time", "moving",
           "recipe", "tree"]

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000}
REGISTRY: dict[str, dict[str, tuple[Callable[[int], nn.Module], Recipe]]] = {
    "cifar": {
        "alex": (plain.alex, Recipe(threshold=8.0, fold=True)),
        "vgg11": (plain.vgg11, Recipe(threshold=8.0, fold=True)),
        **{f"resnet{n}": (partial(resnet.resnet_cifar, n), Recipe())
           for n in (20, 32, 44, 56, 110)},
        "resnet18": (resnet.resnet18, Recipe(hidden=False, ends=False)),
    },
    "imagenet": {
        "alexnet": (plain.alexnet_imagenet, Recipe(hidden=False, fold=True)),
        "vgg16": (plain.vgg16_imagenet, Recipe(hidden=False, fold=True)),
        "vgg11": (plain.vgg11_imagenet, Recipe(hidden=False, threshold=8.0, fold=True)),
    },
}


def family(dataset: str) -> str:
    """Return the registry's family for a data set: "imagenet" (224x224 images) or "cifar" (32x32)."""
    if dataset not in CLASSES:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(CLASSES)}")
    return "imagenet" if dataset == "imagenet" else "cifar"


def architectures(dataset: str) -> list[str]:
    """Return the names that `build` knows for a data set."""
    return list(REGISTRY[family(dataset)])


def _entry(arch: str, dataset: str) -> tuple[Callable[[int], nn.Module], Recipe]:
    known = REGISTRY[family(dataset)]
    if arch not in known:
        raise ValueError(f"unknown architecture {arch!r} for {dataset}: choose one of {', '.join(known)}")
    return known[arch]


def recipe(arch: str, dataset: str) -> Recipe:
    """Return the published quantization recipe of an architecture."""
    return _entry(arch, dataset)[1]


def build(arch: str, dataset: str = "cifar10", num_classes: int | None = None) -> Network:
    """Return a float network, freshly initialised, that maps [B, 3, 32, 32] (ImageNet: 224) to [B, num_classes].

    Raises:
        ValueError: unknown architecture or data set, fewer than 1 class.
    """
    builder, published = _entry(arch, dataset)
    num_classes = CLASSES[dataset] if num_classes is None else num_classes
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: at least 1 class is needed")
    return Network(builder(num_classes), Facts(arch, dataset, num_classes, published))
