"""Published accuracies that stand beside ours, each with its source."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """A published top-1 accuracy in percent, and where it is from."""

    accuracy: float
    source: str


FLOAT = "published recipe of APoT (ICLR 2020)"
APOT = f"{FLOAT}, APoT activations; ours are uniform"
FAST_SNN = "Fast-SNN, TPAMI 2023"

# (data set, architecture, bits, neuron, method) -> figure. What is not here has no published figure that we know of.
PUBLISHED = MappingProxyType({
    ("cifar10", "resnet20", 32, "ANN", "trained"): Published(92.96, FLOAT),
    ("cifar10", "resnet20", 4, "ANN", "trained"): Published(92.45, APOT),
    ("cifar10", "resnet20", 3, "ANN", "trained"): Published(92.49, APOT),
    ("cifar10", "resnet20", 2, "ANN", "trained"): Published(90.96, APOT),
    ("cifar10", "resnet56", 32, "ANN", "trained"): Published(94.46, FLOAT),
    ("cifar10", "resnet56", 4, "ANN", "trained"): Published(93.93, APOT),
    ("cifar10", "resnet56", 3, "ANN", "trained"): Published(93.77, APOT),
    ("cifar10", "resnet56", 2, "ANN", "trained"): Published(93.05, APOT),
    ("cifar10", "resnet18", 2, "signed", "layer-wise"): Published(95.42, FAST_SNN),
    ("imagenet", "vgg16", 2, "signed", "layer-wise"): Published(71.31, FAST_SNN),
})
