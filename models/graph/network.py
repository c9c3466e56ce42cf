"""The network: any module as a graph of units. One class serves float, quantized and spiking networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .copies import sharing_copy, tree
from .regions import INPUT, Graph, Part, live
from .trace import trace

Values = dict[str, Any]  # the values that later parts still read, by name


@dataclass(frozen=True)
class Recipe:
    """Which parts are quantized; activations always get b uniform bits.

    Attributes:
        hidden: hidden weights get b-bit APoT levels (False: they stay float).
        ends: weighted layers of the static and of the readout region get 8 bits.
        threshold: initial clipping threshold of the activations.
        fold: the bias of a convolution before a batch normalisation moves into the running mean, as in published files.
    """

    hidden: bool = True
    ends: bool = True
    threshold: float = 6.0
    fold: bool = False


@dataclass(frozen=True)
class Facts:
    """The facts of a network beside its tensors.

    Attributes:
        arch, dataset, num_classes: arguments of `models.build`; empty for a user's module.
        recipe: how it is quantized.
        bit, weight_bit: precision; 32 is float, `weight_bit` None follows the recipe.
        time_steps, neuron, delay, start: set by conversion; `neuron` None is an ANN, whose `time_steps` are 1.
        mean, std: of each channel, on the scale [0, 1], with which its pixels are normalised; None if unknown.
        trainable_start: True for an import that lacks a threshold: it serves as a start for training only.
    """

    arch: str = ""
    dataset: str = ""
    num_classes: int = 0
    recipe: Recipe = Recipe()
    bit: int = 32
    weight_bit: int | None = None
    time_steps: int = 1
    neuron: str | None = None
    delay: int = 0
    start: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trainable_start: bool = False


def joined(join: Callable[[tuple[Tensor, ...]], Tensor], outputs: Sequence[Any]) -> Any:
    """Return the outputs of several runs as one: their tensors joined, anything else that of the first run."""
    return tree_map(lambda *found: join(found) if isinstance(found[0], Tensor) else found[0], *outputs)


def _fact(name: str) -> property:
    return property(lambda network: getattr(network.facts, name), doc=f"`Facts.{name}`.")


class Network(nn.Module):
    """A module as a graph of units; its state_dict has the module's keys, and it shares the module's parameters.

    Of a spiking network the readout runs on the mean over T, so that its outputs are directly comparable with its ANN's.

    Args:
        module: traceable by torch.fx; takes images [B, C, H, W], or another input that its layers take.

    Raises:
        ValueError: it cannot be traced, has no ReLU, or a call between its ReLUs is not affine; names the call.
    """

    arch, dataset, num_classes = _fact("arch"), _fact("dataset"), _fact("num_classes")
    bit, weight_bit, time_steps, neuron = _fact("bit"), _fact("weight_bit"), _fact("time_steps"), _fact("neuron")
    delay, start, trainable_start = _fact("delay"), _fact("start"), _fact("trainable_start")

    def __init__(self, module: nn.Module, facts: Facts | None = None):
        super().__init__()
        copy, graph = trace(module)
        self._modules, self._parameters, self._buffers = copy._modules, copy._parameters, copy._buffers
        self._non_persistent_buffers_set = copy._non_persistent_buffers_set
        self.training = module.training
        self.graph, self.facts = Graph(copy, graph), facts or Facts()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one of the network's own wins over a layer of the same name."""
        if name in ("graph", "facts"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def copy(self, buffers: bool = False, **facts: Any) -> "Network":
        """Return a network with layers of its own that shares the parameters (and the buffers), with some facts changed."""
        network = sharing_copy(self, buffers)
        network.facts = replace(self.facts, **facts)
        return network

    def forward(self, images: Tensor) -> Any:
        """Map images [B, 3, H, W] to the module's output, usually logits [B, classes]."""
        values = {INPUT: images}
        for unit in self.graph.units:
            values = self.advance(unit, values)
        return self.run(self.graph.readout, values)[0]

    def run(self, part: Part, values: Values, time_steps: int | None = None) -> tuple[Any, Values]:
        """Return a part's current (for the readout: the output) and the values that it shares with later parts.

        Args:
            time_steps: 1 for values that are means over time; None: those of this network.
        """
        steps = self.facts.time_steps if time_steps is None else time_steps
        result, *shared = part.function(self._root(), steps, *(values[name] for name in part.inputs))
        return result, dict(zip(part.shared, shared, strict=True))

    def advance(self, unit: Part, values: Values) -> Values:
        """Run a unit; return the values that later parts still read."""
        current, shared = self.run(unit, values)
        return live({**values, **shared, unit.name: self.activation(unit.name)(current)}, unit)

    def activation(self, name: str) -> nn.Module:
        """Return the activation of the unit `name`."""
        return self.layer(self.graph.activations[name])

    def layer(self, path: str) -> nn.Module:
        """Return the layer at a path, also where the network has an attribute of that name."""
        first, _, rest = path.partition(".")
        return self._modules[first].get_submodule(rest)

    def tensor(self, path: str) -> Tensor:
        """Return the parameter or buffer at a path."""
        container, _, name = path.rpartition(".")
        place = self.layer(container) if container else self
        return place._parameters[name] if name in place._parameters else place._buffers[name]

    def set_layer(self, path: str, layer: nn.Module) -> None:
        """Replace the layer at a path."""
        container, _, name = path.rpartition(".")
        (self.layer(container) if container else self)._modules[name] = layer

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, activation) of each unit, in the order in which they run."""
        for name in self.graph.activations:
            yield name, self.activation(name)

    def walk(self, images: Tensor) -> Iterator[tuple[Part, Values]]:
        """Yield each part, the readout last, with the values before it."""
        values = {INPUT: images}
        for unit in self.graph.units:
            yield unit, values
            values = self.advance(unit, values)
        yield self.graph.readout, values

    def readouts(self, images: Tensor) -> Any:
        """Map images [B, 3, H, W] to the outputs [T, B, ...] after the first T' = 1..T steps of output."""
        *_, (_, values) = self.walk(images)
        means = [{name: self.mean(name, value, steps) for name, value in values.items()} for steps in range(1, self.time_steps + 1)]
        return joined(torch.stack, [self.run(self.graph.readout, values, 1)[0] for values in means])

    def mean(self, name: str, value: Any, steps: int | None = None) -> Any:
        """Return the mean of a value over the first steps, by default all; a value without time as it is."""
        if self.time_steps == 1 or not self.graph.flow.folded(self.graph.values[name]):
            return value
        return value.unflatten(0, (self.time_steps, -1))[:steps].mean(0)

    def excerpt(self, unit: Part) -> nn.Module:
        """Return the layers, the activation and the tensors of a unit (not copies) at their paths."""
        parameters = [node.target for node in unit.constants if node.op == "get_attr"]
        return tree({path: self.layer(path) for path in (*unit.modules(), unit.activation)} | {
            path: self.tensor(path) for path in parameters})

    def _root(self) -> Any:
        """Return the module in which the parts find their layers: this network, unless a layer has the name of an attribute."""
        own = {**self._modules, **self._parameters, **self._buffers}
        return SimpleNamespace(**own) if any(name in vars(self) or hasattr(type(self), name) for name in own) else self
