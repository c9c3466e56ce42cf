"""A network as units in three regions: what a trace says of the flow of data between activations.

Static is what sees images only, with no activation before it; readout what has no activation behind it; spiking the rest. Static
parts and the readout run once, the readout on the mean over T of what enters it; in the spiking region time is folded into
the batch. A unit is an activation with the affine calls between it and the activations before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .affine import NORMS, WEIGHTED, is_place, is_size, objection
from .trace import ACTIVATIONS, POOLS, call_name, called

INPUT = "%images"


def mean_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Average x [T·B, ...], time-major, over its T steps -> [B, ...]; an ANN is the case T = 1."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).mean(0)


def repeat_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Repeat x [B, ...] for each step -> [T·B, ...], time-major."""
    return x if time_steps == 1 else x.expand(time_steps, *x.shape).flatten(0, 1)


def accumulated(x: Tensor, time_steps: int) -> Tensor:
    """Return the sums over the steps so far of x [T·B, ...], of the same shape."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).cumsum(0).flatten(0, 1)


def increments(x: Tensor, time_steps: int) -> Tensor:
    """Undo `accumulated`: between them stands a max-pooling, so that its output over T adds up to the max-pool of the sum."""
    if time_steps == 1:
        return x
    steps = x.unflatten(0, (time_steps, -1))
    return torch.cat((steps[:1], steps.diff(dim=0))).flatten(0, 1)


def sized(x: Tensor, time_steps: int, folded: bool) -> Tensor:
    """Return a tensor without memory, of x's shape with time folded into the batch or taken out of it."""
    batch = len(x) * time_steps if folded else len(x) // time_steps
    return torch.empty(batch, *x.shape[1:], device="meta")


@dataclass(frozen=True, eq=False)
class Part:
    """A unit, or the readout: what is computed at once.

    Attributes:
        name: the activation's, without a trailing ".activation"; "readout".
        activation: path of the activation; None in the readout.
        inputs: names of the values that it reads: the images, what units put out, what earlier parts share.
        shared: names of the values that it computes on its way and that later parts read too.
        dead: names of the values whose last reader it is.
        sources: names of the units whose spikes reach it.
        encodes: its current is static, and so constant over time.
        waiting: neurons on the longest path up to this one that a delay makes wait.
        nodes: its calls, in order; `result` is the node of its current, or of the output.
        constants: its nodes that do not depend on the images.
        function: (root, time_steps, *inputs) -> (current or output, *shared); time_steps 1 is an ANN, or means over time.
    """

    name: str
    activation: str | None
    inputs: tuple[str, ...]
    shared: tuple[str, ...]
    dead: tuple[str, ...]
    sources: tuple[str, ...]
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
    """The parts of a network in the order in which they run, the readout last; it holds no tensors, and copies share it.

    Attributes:
        regions: {path of a layer with weights: "static", "spiking" or "readout"}; a layer called in several is spiking.
        norms: {path of a batch normalisation: path of the layer whose output it reads, where it reads a layer's}.
        activations: {name of a unit: path of its activation}.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph):
        self.flow = _Flow(root, graph)
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
            if isinstance(layer, NORMS) and isinstance(called(node.args[0], root), WEIGHTED) and len(node.args[0].users) == 1:
                self.norms[node.target] = node.args[0].target

    def __deepcopy__(self, memo: dict) -> "Graph":
        return self

    def calls(self, target: str) -> int:
        """Return how many calls of a layer there are."""
        return sum(node.op == "call_module" and node.target == target for part in self.parts for node in part.nodes)


    def ancestors(self, end: fx.Node) -> list[fx.Node]:
        """Return the calls that a node depends on without an activation between."""
        acts, found, stack = set(self.flow.acts), [], [end]
        while stack:
            new = [node for node in stack.pop().all_input_nodes if node not in acts and node not in found]
            found += new
            stack += new
        return found


class _Flow:
    """The nodes that the output needs, in order, with their regions."""

    def __init__(self, root: nn.Module, graph: fx.Graph):
        self.output = next(node for node in graph.nodes if node.op == "output")
        needed, waiting = set(), [self.output]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in graph.nodes if node in needed]
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.size = {node for node in self.nodes if is_size(node)}
        varying, after, before = set(), set(), set()
        for node in self.nodes:
            if node.op == "placeholder" or (node not in self.size and any(source in varying for source in node.all_input_nodes)):
                varying.add(node)
        self.constant = {node for node in self.nodes if node not in varying and node not in self.size}
        self.acts = [node for node in self.nodes if node in varying and isinstance(called(node, root), ACTIVATIONS)]
        tensors = [node for node in self.nodes if node in varying]
        for node in tensors:
            if any(source in after or source in self.acts for source in node.all_input_nodes):
                after.add(node)
        for node in reversed(tensors):
            if any(user in before or user in self.acts for user in node.users):
                before.add(node)
        acts = set(self.acts)
        self.pools = {node for node in tensors if isinstance(called(node, root), POOLS)}
        behind = {node: "spiking" if node in before else "readout" for node in after}
        self.region = {node: "spiking" if node in acts else behind.get(node, "static") for node in tensors}

    def folded(self, node: fx.Node) -> bool:
        """Return whether the batch of what a node puts out holds time."""
        return self.region.get(node) == "spiking"

    def check(self, root: nn.Module) -> None:
        """Raise ValueError if there is no ReLU, or if a call in the spiking region is not affine; names it."""
        if self.nodes[0].op != "placeholder":
            raise ValueError("the network does not read its images")
        if not self.acts:
            other = next((f": {node.target} is {type(called(node, root)).__name__}" for node in self.nodes
                          if type(called(node, root)).__module__ == nn.ReLU.__module__), "")
            raise ValueError(f"the network has no ReLU{other}; what spikes is trained with ReLUs")
        acts = set(self.acts)
        for node in self.nodes:
            if self.folded(node) and node not in acts:
                reason = objection(node, root, self.folded)
                if reason is not None:
                    raise ValueError(f"{node.target if node.op == 'call_module' else node.name}: {reason}")

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors, not constant, that a node reads, or whose sizes it reads."""
        found: list[fx.Node] = []
        for source in node.all_input_nodes:
            if source in self.size:
                found += self.sources(source)
            elif source not in self.constant:
                found.append(source)
        return found


class _Builder:
    """Deals the nodes to parts, each to the first one that needs it, and writes the parts' functions."""

    def __init__(self, flow: _Flow):
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
            writer = _Writer(flow, list(readers[index]))
            function = writer.function(result, shared, act is not None and not encodes)
            constants = tuple(node for node, _ in writer.known if node in flow.constant)
            parts.append(Part(
                self.names[act] if act else "readout", act.target if act else None, tuple(map(self._name, readers[index])),
                tuple(map(self._name, shared)), tuple(self._name(node) for node, end in last.items() if end == index),
                tuple(self.names[source] for source in sources), encodes, self.waiting.get(act, waits), tuple(nodes), result,
                constants, function))
        return tuple(parts)

    def _name(self, node: fx.Node) -> str:
        return self.names.get(node, f"%{node.name}")

    def _own(self, end: fx.Node, index: int) -> list[fx.Node]:
        """Return what is computed first for `end`, in order."""
        found, stack = [], [end]
        while stack:
            node = stack.pop()
            if node in self.owner or node in self.names or node in self.flow.constant:
                continue
            if node is not self.flow.output:
                self.owner[node] = index
                found.append(node)
            stack += self.flow.sources(node)
        return sorted(found, key=self.flow.order.__getitem__)

    def _reads(self, nodes: list[fx.Node], end: fx.Node, index: int) -> list[fx.Node]:
        """Return what a part reads and does not compute itself."""
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


class _Writer:
    """Writes a part as a function of the values that it reads."""

    def __init__(self, flow: _Flow, inputs: list[fx.Node]):
        self.flow, self.graph = flow, fx.Graph()
        self.steps = self.graph.placeholder("time_steps")
        self.known = {(node, self.flow.folded(node)): self.graph.placeholder(f"value_{index}") for index, node in enumerate(inputs)}

    def function(self, end: fx.Node, shared: list[fx.Node], folded: bool) -> Callable[..., tuple]:
        """Return (root, time_steps, *inputs) -> (end, *shared)."""
        result = self.emit(end, folded) if end.op != "output" else fx.map_arg(end.args[0], lambda node: self.emit(node, False))
        self.graph.output((result, *(self.emit(node, self.flow.folded(node)) for node in shared)))
        return compiled(self.graph)

    def emit(self, node: fx.Node, folded: bool) -> fx.Node:
        """Return the node with time folded into its batch or not."""
        if (node, folded) not in self.known:
            self.known[node, folded] = self._write(node, folded)
        return self.known[node, folded]

    def _write(self, node: fx.Node, folded: bool) -> fx.Node:
        flow = self.flow
        if node in flow.size:
            return self.graph.node_copy(node, lambda source: self._measured(source, node, folded))
        if node in flow.constant:
            return self.graph.node_copy(node, lambda source: self.emit(source, folded))
        if flow.folded(node) != folded:
            call = repeat_over_time if folded else mean_over_time
            return self.graph.call_function(call, (self.emit(node, not folded), self.steps))
        if folded and node in flow.pools:
            sums = self.graph.call_function(accumulated, (self.emit(node.args[0], True), self.steps))
            return self.graph.call_function(increments, (self.graph.call_module(node.target, (sums,)), self.steps))
        return self.graph.node_copy(node, lambda source: self.emit(source, folded))

    def _measured(self, source: fx.Node, reader: fx.Node, folded: bool) -> fx.Node:
        """Return what a size is read from: of a tensor from the other side of a border its size on this one."""
        flow = self.flow
        if source in flow.size or source in flow.constant:
            return self.emit(source, folded)
        own = flow.folded(source)
        real = self.emit(source, own)
        if own == folded or is_place(reader) or call_name(reader).startswith("new_"):
            return real
        return self.graph.call_function(sized, (real, self.steps, folded))


def moving(graph: Graph, chain: tuple[fx.Node, ...], windows: dict[fx.Node, tuple]) -> Callable[..., Tensor] | None:
    """Return (root, time_steps, x) -> y for calls that move or pool spikes x as they are stored, each on what the one before it
    puts out; None where one needs the size of something else.

    Max-pooling is that of the spikes so far, whose steps are spikes again.

    Args:
        windows: kernel and stride of the calls that are average pooling; they become sums, which are integers. None marks a call
            that takes floating-point numbers only.
    """
    written = fx.Graph()
    steps, start = written.placeholder("time_steps"), written.placeholder("x")
    x = start
    for node in chain:
        if any(source is not node.args[0] for source in graph.flow.sources(node)):
            return None
        moves = node not in graph.flow.pools and node not in windows
        x = x if moves else written.call_function(floating, (x,))
        if windows.get(node) is not None:
            x = written.call_function(window_sums, (x, *windows[node]))
        elif node in graph.flow.pools:
            sums = written.call_function(accumulated, (x, steps))
            x = written.call_function(increments, (written.call_module(node.target, (sums,)), steps))
        else:
            x = _on(graph.flow, written, node, node.args[0], x)
        x = x if moves else written.call_method("type_as", (x, start))
    written.output(x)
    return compiled(written)


def _on(flow: "_Flow", written: fx.Graph, node: fx.Node, source: fx.Node, x: fx.Node) -> fx.Node:
    """Write a call, and the sizes that it reads, with x in the place of `source`."""
    def put(read: fx.Node) -> fx.Node:
        return x if read is source else _on(flow, written, read, source, x)

    return written.node_copy(node, put)


def floating(x: Tensor) -> Tensor:
    """Return x as floating-point numbers."""
    return x if x.is_floating_point() else x.float()


def window_sums(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return the sums of x [B, C, H, W] over windows."""
    return F.avg_pool2d(x, kernel, stride, divisor_override=1)


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """Return the function that a graph describes; its first argument is where its layers are."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<part of a network>", "exec"), names)
    return names["forward"]


def live(values: dict[str, Any], part: Part) -> dict[str, Any]:
    """Return the values that parts behind `part` still read."""
    return {name: value for name, value in values.items() if name not in part.dead}


