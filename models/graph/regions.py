"""A network as units in three regions, from the flow of data between activations in its trace.

Static calls have no activation before them: they see images only. Readout calls have no activation after them. The rest is
spiking. Static parts and the readout run once, the readout on the mean over T of its inputs; in the spiking region time is
folded into the batch. A unit is an activation with the affine calls between it and the activations before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .affine import NORMS, WEIGHTED
from .calls import called
from .flow import Flow
from .writing import Writer

INPUT = "%images"


@dataclass(frozen=True, eq=False)
class Part:
    """A unit, or the readout: computed at once.

    Attributes:
        name: the activation's, without a trailing ".activation"; "readout".
        activation: path of the activation; None in the readout.
        inputs: names of the values that it reads: the images, outputs of units, values that earlier parts share.
        shared: names of the intermediate values that later parts read too.
        dead: names of the values that no later part reads.
        encodes: its current is static, and so constant over time.
        waiting: how many neurons on the longest path to this one wait where there is a delay.
        nodes: its calls, in order; `result` is the node of its current, or of the output.
        constants: its nodes that do not depend on the images.
        function: (root, time_steps, *inputs) -> (current or output, *shared); time_steps 1 is an ANN, or means over time.
    """

    name: str
    activation: str | None
    inputs: tuple[str, ...]
    shared: tuple[str, ...]
    dead: tuple[str, ...]
    encodes: bool
    waiting: int
    nodes: tuple[fx.Node, ...]
    result: fx.Node
    constants: tuple[fx.Node, ...]
    function: Callable[..., tuple]

    def modules(self) -> list[str]:
        """Return the paths of the layers that it calls."""
        return list(dict.fromkeys(node.target for node in (*self.nodes, *self.constants) if node.op == "call_module"))


class Graph:
    """The parts of a network in the order in which they run, the readout last. It holds no tensors, so that copies share it.

    Attributes:
        regions: {path of a layer with weights: "static", "spiking" or "readout"}; of several calls a spiking one counts.
        norms: {path of a batch normalisation: path of the layer whose output it reads}; only where each is called once.
        activations: {name of a unit: path of its activation}.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph):
        self.flow = Flow(root, graph)
        self.flow.check(root)
        builder = _Builder(self.flow)
        self.parts = builder.parts()
        self.units = self.parts[:-1]
        self.readout = self.parts[-1]
        self.values = builder.values
        self.activations = {unit.name: unit.activation for unit in self.units}
        self.regions: dict[str, str] = {}
        self.norms: dict[str, str] = {}
        for node in (node for part in self.parts for node in part.nodes):
            layer = called(node, root)
            if isinstance(layer, WEIGHTED) and self.regions.get(node.target) != "spiking":
                self.regions[node.target] = self.flow.region[node]
            read = node.args[0] if isinstance(layer, NORMS) else None
            if isinstance(read, fx.Node) and isinstance(called(read, root), WEIGHTED) and len(read.users) == 1 and (
                    self.calls(node.target) == self.calls(read.target) == 1):
                self.norms[node.target] = read.target

    def __deepcopy__(self, memo: dict) -> "Graph":
        return self

    def calls(self, target: str) -> int:
        """Return how often a layer is called."""
        return sum(node.op == "call_module" and node.target == target for part in self.parts for node in part.nodes)


class _Builder:
    """Gives each node to the first part that needs it, and writes the parts' functions."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.names = {flow.nodes[0]: INPUT} | {node: node.target.removesuffix(".activation") for node in flow.acts}
        self.values: dict[str, fx.Node] = {}
        self.owner: dict[fx.Node, int] = {}
        self.waiting: dict[fx.Node, int] = {}

    def parts(self) -> tuple[Part, ...]:
        flow, own = self.flow, []
        ends = [node.args[0] for node in flow.acts]
        for index, end in enumerate([*ends, flow.output]):
            own.append(self._own(end, index))
        readers = [self._reads(nodes, end, index) for index, (nodes, end) in enumerate(zip(own, [*ends, flow.output], strict=True))]
        last = {source: index for index, reads in enumerate(readers) for source in reads}
        parts = []
        for index, nodes in enumerate(own):
            act = flow.acts[index] if index < len(ends) else None
            shared = [node for node in nodes if last.get(node, index) > index]
            sources = self._activations(flow.output if act is None else act.args[0])
            encodes = act is not None and not flow.folded(act.args[0])
            waits = max((self.waiting[source] for source in sources), default=0)
            if act is not None:
                self.waiting[act] = waits + (not encodes)
            result = flow.output if act is None else act.args[0]
            self.values |= {self._name(node): node for node in [*readers[index], *shared, *([act] if act else [])]}
            writer = Writer(flow, list(readers[index]))
            function = writer.function(nodes, result, shared, act is not None and not encodes)
            constants = tuple(node for node, _ in writer.known if node in flow.constant)
            parts.append(Part(
                self.names[act] if act else "readout", act.target if act else None, tuple(map(self._name, readers[index])),
                tuple(map(self._name, shared)), tuple(self._name(node) for node, end in last.items() if end == index),
                encodes, self.waiting.get(act, waits), tuple(nodes), result,
                constants, function))
        return tuple(parts)

    def _name(self, node: fx.Node) -> str:
        return self.names.get(node, f"%{node.name}")

    def _own(self, end: fx.Node, index: int) -> list[fx.Node]:
        """Return the nodes that `end` needs and no earlier part computes, in order."""
        found, stack = [], [end]
        while stack:
            node = stack.pop()
            if node in self.owner or node in self.names or node in self.flow.constant:
                continue
            if node is not self.flow.output:
                self.owner[node] = index
                found.append(node)
            stack += self.flow.sources(node)
        lists = {source for node in found for source in node.all_input_nodes if source in self.flow.lists}
        return sorted({*found, *lists}, key=self.flow.order.__getitem__)

    def _reads(self, nodes: list[fx.Node], end: fx.Node, index: int) -> list[fx.Node]:
        """Return the values that a part reads but does not compute."""
        reads = [source for node in nodes for source in self.flow.sources(node)]
        reads += self.flow.sources(end) if end is self.flow.output else [end]
        return [node for node in dict.fromkeys(reads) if self.owner.get(node) != index]

    def _activations(self, end: fx.Node) -> list[fx.Node]:
        """Return the activations that `end` reads through affine calls."""
        found, seen, stack = [], set(), [end]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                if node in self.names and node is not self.flow.nodes[0]:
                    found.append(node)
                else:
                    stack += self.flow.sources(node)
        return sorted(found, key=self.flow.order.__getitem__)


def live(values: dict[str, Any], part: Part) -> dict[str, Any]:
    """Return the values that parts after `part` still read."""
    return {name: value for name, value in values.items() if name not in part.dead}
