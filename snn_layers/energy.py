"""Operations of a network and its spiking one, and the energy that they take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from models import Network, Site, State, Unit

from .deploy import Deployed


@dataclass(frozen=True)
class Preset:
    """Energy of a multiply-accumulate and of an addition in pJ, 45 nm.

    Source: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014. A MAC is a multiplication
    and an addition: 3.7 + 0.9 pJ in float32, 0.2 + 0.03 pJ in 8-bit integers.
    """

    name: str
    mac: float
    ac: float


FP32, INT8 = Preset("FP32", 4.6, 0.9), Preset("INT8", 0.23, 0.03)


@dataclass(frozen=True)
class Operations:
    """Operations of one layer for one image.

    Attributes:
        macs: of the ANN, each activation times each weight that it meets; a tap on the padding is none.
        adds: of the ANN, residuals that are added without a weight.
        nonzero: the MACs that are left where the ANN skips activations that are zero.
        acs: of the SNN over all steps: for each spike of either sign, the outputs that it reaches. The first layer sees an
            image, not spikes: none, but its MACs, once.
    """

    name: str
    macs: float
    adds: float
    nonzero: float
    acs: float


def fan_out(layer: nn.Conv2d | nn.Linear, size: tuple[int, ...]) -> Tensor:
    """Return how many outputs an input at each position reaches: [H, W] for a convolution of [C, H, W], [] for a linear layer.

    With stride and padding the number differs from position to position; weights that are zero count.
    """
    if isinstance(layer, nn.Linear):
        return torch.tensor(float(layer.out_features))
    height, width = size[-2:]
    outputs = [(length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for length, padding, dilation, kernel, stride
               in zip((height, width), layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)]
    reached = conv2d_input((1, 1, height, width), torch.ones(1, 1, *layer.kernel_size), torch.ones(1, 1, *outputs), layer.stride,
                           layer.padding, layer.dilation)
    return reached[0, 0] * (layer.out_channels // layer.groups)


def weighted(layer: nn.Conv2d | nn.Linear, counts: Tensor) -> float:
    """Return the operations that inputs drive in a layer; counts [C, H, W] or [features]."""
    return (counts.double() * fan_out(layer, counts.shape).double()).sum().item()


def driven(unit: nn.Module, counts: State) -> tuple[float, float]:
    """Return what the inputs of a unit drive: operations with a weight, additions of a residual without one."""
    operations = weighted(unit.conv, counts.x)
    if counts.residual is None:
        return operations, 0.0
    if unit.shortcut is None:
        return operations, counts.residual.double().sum().item()
    return operations + weighted(unit.shortcut.conv, counts.residual), 0.0


def count(state: State, value: Callable[[Tensor], Tensor]) -> State:
    """Return a state's tensors [N, ...] as sums of `value` over N."""
    return State(*(None if x is None else value(x).double().sum(0) for x in (state.x, state.residual)))


def walk(network: Network | Deployed, images: Tensor) -> Iterator[tuple[Site | None, State]]:
    """Yield each site with the state in front of it, and None with what the body puts out."""
    state = State(images)
    sites = network.sites if isinstance(network, Deployed) else network.sites()
    for site in sites:
        yield site, state
        state = site(state)
    yield None, state


@torch.inference_mode()
def operations(ann: Network, deployed: Deployed, images: Tensor) -> list[Operations]:
    """Return the mean operations for one of the images [N, C, H, W], layer by layer, the head last."""
    zero, number = deployed.zero, len(images)
    rows = []
    for (site, active), (_, fired) in zip(walk(ann, images), walk(deployed, images), strict=True):
        if site is not None and not isinstance(site.module, Unit):
            continue
        nonzero = count(active, lambda x: x != 0)
        spikes = count(fired, lambda x: (x.float() - zero).abs())
        if site is None:  # through pooling, which is linear, each spike reaches each class
            shape = ann.pool(active.x).shape[1:]
            macs, adds, name = weighted(ann.head, torch.ones(shape)), 0.0, "head"
            effective, acs = weighted(ann.head, (ann.pool(active.x) != 0).sum(0)), weighted(ann.head, spikes.x)
        else:
            ones = State(*(None if x is None else torch.ones_like(x) for x in (spikes.x, spikes.residual)))
            macs, adds = driven(site.module, ones)
            effective, name = driven(site.module, nonzero)[0], site.name
            acs = sum(driven(site.module, spikes)) if rows else 0.0
        rows.append(Operations(name, macs, adds, effective / number, acs / number))
    return rows


def total(rows: list[Operations]) -> Operations:
    """Return the sum over the layers."""
    return weighted_sum("total", [(1.0, row) for row in rows])


def mean_over_batches(batches: list[tuple[int, list[Operations]]]) -> list[Operations]:
    """Return the mean operations of an image, layer by layer, from those of batches with their number of images."""
    images = sum(number for number, _ in batches)
    layers = zip(*(rows for _, rows in batches), strict=True)
    return [weighted_sum(layer[0].name, [(number / images, row) for (number, _), row in zip(batches, layer, strict=True)])
            for layer in layers]


def weighted_sum(name: str, rows: list[tuple[float, Operations]]) -> Operations:
    """Return Σ w · row, field by field."""
    kinds = [field.name for field in fields(Operations)[1:]]
    return Operations(name, **{kind: sum(weight * getattr(row, kind) for weight, row in rows) for kind in kinds})


def ann_energy(rows: list[Operations], preset: Preset, skip_zeros: bool = False) -> float:
    """Return the energy of the ANN for one image in µJ; memory, BN and activation functions are not counted."""
    sums = total(rows)
    return ((sums.nonzero if skip_zeros else sums.macs) * preset.mac + sums.adds * preset.ac) * 1e-6


def snn_energy(rows: list[Operations], preset: Preset) -> float:
    """Return the energy of the SNN for one image in µJ: MACs of the first layer, ACs of the others.

    Memory and neurons are not counted.
    """
    return (rows[0].macs * preset.mac + total(rows).acs * preset.ac) * 1e-6
