"""Functions written from the nodes of a trace, and what they call on values with time in the batch, [T·B, ...], time-major.

The flow says where time is folded into the batch; an ANN is the case T = 1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .affine import is_place
from .calls import argument, call_name
from .flow import Flow


class Writer:
    """Writes a part as a function of the values that it reads."""

    def __init__(self, flow: Flow, inputs: list[fx.Node]):
        self.flow, self.graph = flow, fx.Graph()
        self.steps = self.graph.placeholder("time_steps")
        self.known = {(node, self.flow.folded(node)): self.graph.placeholder(f"value_{index}") for index, node in enumerate(inputs)}

    def function(self, nodes: list[fx.Node], end: fx.Node, shared: list[fx.Node], folded: bool) -> Callable[..., tuple]:
        """Return (root, time_steps, *inputs) -> (end, *shared); `nodes` are those of the part, in order."""
        for node in nodes:  # a chain of hundreds would be too deep for `emit` alone
            if node not in self.flow.lists:
                self.emit(node, self.flow.folded(node))
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
        if node in flow.constant or node in flow.lists:
            return self.graph.node_copy(node, lambda source: self.emit(source, folded))
        if flow.folded(node) != folded:
            call = repeat_over_time if folded else mean_over_time
            return self.graph.call_function(call, (self.emit(node, not folded), self.steps))
        if folded and node in flow.pools:
            sums = self.graph.call_function(accumulated, (self.emit(node.args[0], True), self.steps))
            return self.graph.call_function(increments, (self.graph.call_module(node.target, (sums,)), self.steps))
        return self.graph.node_copy(node, lambda source: self.emit(source, folded))

    def _measured(self, source: fx.Node, reader: fx.Node, folded: bool) -> fx.Node:
        """Return the tensor whose size is read; one from the other side of a region's border gets its size on this side."""
        flow = self.flow
        if source in flow.size or source in flow.constant:
            return self.emit(source, folded)
        own = flow.folded(source)
        if is_place(reader) or call_name(reader).startswith("new_"):
            return self.emit(source, own)
        if folded and not own:
            return self.graph.call_function(sized, (self.emit(source, False), self.steps))
        return self.emit(source, folded)


def moving(flow: Flow, chain: tuple[fx.Node, ...], windows: dict[fx.Node, tuple], zero: int = 0) -> Callable[..., Tensor] | None:
    """Return (root, time_steps, x) -> y for a chain of calls that move or pool spikes x as they are stored.

    None if a call needs the size of another value. Max-pooling pools the sums of the spikes so far; their increments are spikes
    again.

    Args:
        windows: kernel and stride of the calls that are average pooling; they become sums, which are integers. None marks a
            call that takes floating-point numbers only.
        zero: what stands for 0 in spikes as they are stored; padding puts it on.
    """
    written = fx.Graph()
    steps, start = written.placeholder("time_steps"), written.placeholder("x")
    x = start
    for node in chain:
        if node.args[0] not in flow.lists and any(source is not node.args[0] for source in flow.sources(node)):
            return None
        moves = node not in flow.pools and node not in windows
        x = x if moves else written.call_function(floating, (x,))
        if windows.get(node) is not None:
            x = written.call_function(window_sums, (x, *windows[node]))
        elif node in flow.pools:
            sums = written.call_function(accumulated, (x, steps))
            x = written.call_function(increments, (written.call_module(node.target, (sums,)), steps))
        elif call_name(node) == "pad":
            x = written.call_function(F.pad, (x, argument(node, 1, "pad"), "constant", zero))
        else:
            x = _on(flow, written, node, node.args[0], x)
        x = x if moves else written.call_method("type_as", (x, start))
    written.output(x)
    return compiled(written)


def _on(flow: Flow, written: fx.Graph, node: fx.Node, source: fx.Node, x: fx.Node) -> fx.Node:
    """Write a call, and the sizes that it reads, with x in the place of `source`."""
    def put(read: fx.Node) -> fx.Node:
        return x if read is source else _on(flow, written, read, source, x)

    return written.node_copy(node, put)


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """Return the function that a graph describes; its first argument is the module that holds its layers."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<part of a network>", "exec"), names)
    return names["forward"]


def mean_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Average x [T·B, ...], time-major, over its T steps -> [B, ...]."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).mean(0)


def repeat_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Repeat x [B, ...] for each step -> [T·B, ...], time-major."""
    return x if time_steps == 1 else x.expand(time_steps, *x.shape).flatten(0, 1)


def accumulated(x: Tensor, time_steps: int) -> Tensor:
    """Return the sums over the steps so far of x [T·B, ...], of the same shape."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).cumsum(0).flatten(0, 1)


def increments(x: Tensor, time_steps: int) -> Tensor:
    """Undo `accumulated`. A max-pooling stands between the two, so that its outputs add up over T to the max-pool of the sum."""
    if time_steps == 1:
        return x
    steps = x.unflatten(0, (time_steps, -1))
    return torch.cat((steps[:1], steps.diff(dim=0))).flatten(0, 1)


def sized(x: Tensor, time_steps: int) -> Tensor:
    """Return a tensor without memory, of x's shape with time folded into the batch."""
    return torch.empty(len(x) * time_steps, *x.shape[1:], device="meta")


def floating(x: Tensor) -> Tensor:
    """Return x as floating-point numbers."""
    return x if x.is_floating_point() else x.float()


def window_sums(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return the sums of x [B, C, H, W] over windows."""
    return F.avg_pool2d(x, kernel, stride, divisor_override=1)
