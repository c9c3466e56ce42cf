"""Float networks by name: the registry of builders and of the published quantization recipes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import plain, resnet
from .network import Network, Site, State, mean_over_time
from .unit import BasicBlock, Shortcut, Unit

__all__ = ["CLASSES", "REGISTRY", "BasicBlock", "Network", "Recipe", "Shortcut", "Site", "State", "Unit", "architectures", "build",
           "family", "mean_over_time", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """What the papers quantize in an architecture; activations always get b uniform bits.

    Attributes:
        hidden: hidden weights get b-bit APoT levels (False: they stay float).
        ends: the first convolution and the last linear layer get 8 bits.
        threshold: initial clipping threshold of the activations.
    """

    hidden: bool
    ends: bool
    threshold: float


CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000}
REGISTRY: dict[str, dict[str, tuple[Callable[[int], Network], Recipe]]] = {
    "cifar": {
        "alex": (plain.alex, Recipe(hidden=True, ends=True, threshold=8.0)),
        "vgg11": (plain.vgg11, Recipe(hidden=True, ends=True, threshold=8.0)),
        **{f"resnet{n}": (partial(resnet.resnet_cifar, n), Recipe(hidden=True, ends=True, threshold=6.0))
           for n in (20, 32, 44, 56, 110)},
        "resnet18": (resnet.resnet18, Recipe(hidden=False, ends=False, threshold=6.0)),
    },
    "imagenet": {
        "alexnet": (plain.alexnet_imagenet, Recipe(hidden=False, ends=True, threshold=6.0)),
        "vgg16": (plain.vgg16_imagenet, Recipe(hidden=False, ends=True, threshold=6.0)),
        "vgg11": (plain.vgg11_imagenet, Recipe(hidden=False, ends=True, threshold=8.0)),
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


def _entry(arch: str, dataset: str) -> tuple[Callable[[int], Network], Recipe]:
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
    builder, _ = _entry(arch, dataset)
    num_classes = CLASSES[dataset] if num_classes is None else num_classes
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: at least 1 class is needed")
    network = builder(num_classes)
    network.arch, network.dataset = arch, dataset
    return network
