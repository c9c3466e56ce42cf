"""Operations and energy of a quantized network and its spiking one."""

from copy import copy
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from models import INPUT, NORMS, WEIGHTED, Network, Part, Values
from models.graph.affine import WEIGHTING
from models.graph.calls import FollowsMode, argument, call_name

from .deployment.deploy import Deployed
from .deployment.normal_form import SAME
from .deployment.terms import JOINS

AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
AVERAGING = ("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
KEPT = ("add", "sub", "mul", "multiply", "div", "divide", "truediv", "neg")  # of one value: as many spikes as before


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
        macs: of the ANN, each activation times each weight that it meets; padding does not count.
        adds: of the ANN, residuals that are added without a weight.
        nonzero: the MACs that are left where the ANN skips activations that are zero.
        acs: of the SNN over all steps: for each spike of either sign, the outputs that it reaches.
        analog: MACs of the SNN in layers that read no spikes: once for a layer that sees an image; in each step for a layer after
            another without a neuron between.
    """

    name: str
    macs: float
    adds: float
    nonzero: float
    acs: float
    analog: float = 0.0


def fan_out(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return how many outputs an input at each position reaches: [H, W] for a convolution of [C, H, W], [] for a linear layer.

    With stride and padding the number differs from position to position. Zero weights count.
    """
    if isinstance(layer, nn.Linear):
        return torch.tensor(float(layer.out_features))
    kind = next(kind for kind in WEIGHTED if isinstance(layer, kind))
    with torch.inference_mode(False), torch.enable_grad():
        more = {"output_padding": layer.output_padding} if layer.transposed else {}
        ones = kind(1, 1, layer.kernel_size, layer.stride, layer.padding, dilation=layer.dilation, bias=False,
                    padding_mode=layer.padding_mode, **more)
        nn.init.ones_(ones.weight)
        image = torch.zeros(1, 1, *size[1:], requires_grad=True)
        reached, = torch.autograd.grad(ones(image).sum(), image)
    return reached[0, 0] * (layer.out_channels // layer.groups)


def weighted(layer: nn.Module, counts: Tensor) -> float:
    """Return the operations that inputs drive in a layer; counts [C, H, W] or [features]."""
    return (counts.double() * fan_out(layer, counts.shape).to(counts.device, torch.float64)).sum().item()


@torch.inference_mode()
def operations(ann: Network, deployed: Deployed, images: Tensor) -> list[Operations]:
    """Return the mean operations for one of the images [N, C, H, W], layer by layer, the readout last as "head"."""
    rows, number, steps = [], len(images), deployed.time_steps
    values = {INPUT: images}
    for part, active in ann.walk(images):
        macs, nonzero = _dense(ann, part, active)
        spikes = {name: (values[name].float() - deployed.zero).abs().double().sum(0) for name in values if name in deployed.index}
        driven, summed, analog = _driven(ann, part, spikes)
        ones = {name: torch.ones_like(value) for name, value in spikes.items()}
        again = {path: steps if ann.graph.regions[path] == "spiking" else 1 for path in analog}
        rows.append(Operations("head" if part is ann.graph.readout else part.name, sum(macs.values()), _driven(ann, part, ones)[1],
                               nonzero / number, (driven + summed) / number, sum(macs[path] * again[path] for path in again)))
        if part is not ann.graph.readout:
            values, _ = deployed.step(part, values)
    return rows


def _dense(ann: Network, part: Part, values: Values) -> tuple[dict[str, float], float]:
    """Return the MACs of each layer of a part for one image, and those of nonzero activations for all images."""
    macs: dict[str, float] = {}
    nonzero, hooks = [], []
    def look(path: str, layer: nn.Module, x: Tensor) -> None:
        macs[path] = macs.get(path, 0.0) + weighted(layer, torch.ones_like(x[0]))
        nonzero.append(weighted(layer, (x != 0).sum(0)))

    for path in part.modules():
        layer = ann.layer(path)
        if isinstance(layer, WEIGHTED):
            hooks.append(layer.register_forward_pre_hook(lambda layer, x, path=path: look(path, layer, x[0])))
    ann.run(part, values)
    for hook in hooks:
        hook.remove()
    return macs, sum(nonzero)


def _driven(ann: Network, part: Part, counts: dict[str, Tensor]) -> tuple[float, float, list[str]]:
    """Return the operations that spikes drive in a part, with a weight and without one, and the layers that read no spikes.

    Args:
        counts: spikes of each unit that the part reads, summed over time and images.

    Raises:
        ValueError: a function has a weight.
    """
    graph, driven, summed, analog = ann.graph, 0.0, 0.0, []
    # [2, C, ...], twice the same: `squeeze` must not take the axis of the batch.
    known = {graph.values[name]: torch.stack((count, count)) for name, count in counts.items()}
    for node in part.nodes:
        layer = ann.layer(node.target) if node.op == "call_module" else None
        tensors = [source for source in node.all_input_nodes if source not in graph.flow.size and source not in graph.flow.constant]
        reads = [known[source] for source in tensors if source in known]
        if isinstance(layer, WEIGHTED):
            driven += sum(weighted(layer, count[0]) for count in reads)
            analog += [] if reads else [node.target]
        elif reads and len(tensors) > 1 and call_name(node) in ("add", "sub"):
            summed += sum(count[0].sum().item() for count in reads)
        elif reads and call_name(node) in WEIGHTING:
            raise ValueError(f"the operations of {node.name}, a function with a weight, are not counted: write it as a layer")
        elif len(reads) == len(tensors) > 0:
            known[node] = _moved(ann, node, layer, known)
    return driven, summed, analog


def _moved(ann: Network, node: fx.Node, layer: nn.Module | None, known: dict[fx.Node, Tensor]) -> Tensor:
    """Return the counts after a call without weights: a scaled or shifted spike is one, and each passes through an average."""
    x, name = known[next(source for source in node.all_input_nodes if source in known)], call_name(node)
    if isinstance(layer, (*NORMS, *SAME, FollowsMode)) or name in KEPT:
        return x
    if isinstance(layer, POOLS):
        layer, size = copy(layer), getattr(layer, "divisor_override", None) or _window(layer.kernel_size, x)
        layer.count_include_pad = True  # so that all places have this divisor
        return size * _computed(ann, node, layer, known)
    found = _computed(ann, node, layer, known)
    if isinstance(layer, AVERAGES) or name in AVERAGING:
        return found * (x.numel() / found.numel())
    return found * _window(argument(node, 1, "kernel_size"), x) if name.startswith("avg_pool") else found


def _window(kernel: int | tuple[int, ...], x: Tensor) -> int:
    """Return the places of a pooling's window on x [N, C, ...]."""
    kernel = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    return prod(kernel) ** ((x.dim() - 2) // len(kernel))


def _computed(ann: Network, node: fx.Node, layer: nn.Module | None, known: dict[fx.Node, Tensor]) -> Any:
    """Return what a call makes of counts in the place of the values that it reads; values without spikes are joined as zeros."""
    def value(source: fx.Node) -> Any:
        found = _value(ann, source, known)
        spikeless = call_name(node) in JOINS and source not in known
        return torch.zeros_like(found, dtype=torch.float64) if spikeless and isinstance(found, Tensor) else found

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return (layer or node.target)(*args, **kwargs)


def _value(ann: Network, source: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
    """Return what a call reads: counts, a parameter or buffer, or what is computed of these and of sizes; else 1."""
    if source in known or source.op == "get_attr":
        return known[source] if source in known else ann.tensor(source.target)
    flow = ann.graph.flow
    if source not in flow.constant and not all(read in known or read in flow.size for read in source.all_input_nodes):
        return 1
    return _computed(ann, source, ann.layer(source.target) if source.op == "call_module" else None, known)


def total(rows: list[Operations]) -> Operations:
    """Return the sum over the layers."""
    return weighted_sum("total", [(1.0, row) for row in rows])


def mean_over_batches(batches: list[tuple[int, list[Operations]]]) -> list[Operations]:
    """Return the mean operations of an image, layer by layer, from pairs (number of images, mean of the batch)."""
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
    """Return the energy of the SNN for one image in µJ: MACs where no spikes are read, else ACs; without memory and neurons."""
    return (total(rows).analog * preset.mac + total(rows).acs * preset.ac) * 1e-6
