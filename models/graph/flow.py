"""The flow of data through a trace: what the output needs, which nodes depend on which, and the three regions."""

from collections.abc import Callable

from torch import Tensor, fx, nn

from .affine import WEIGHTING, is_size, objection
from .calls import ACTIVATIONS, POOLS, call_name, called


class Flow:
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
        self.lists = {node for node in self.nodes if call_name(node) in ("split", "chunk", "tensor_split", "unbind")}
        self.size: set[fx.Node] = set()
        for node in self.nodes:
            if is_size(node, self.size):
                self.size.add(node)
        varying, after, before = set(), set(), set()
        for node in self.nodes:
            if node.op == "placeholder" or (node not in self.size and any(source in varying for source in node.all_input_nodes)):
                varying.add(node)
        self.constant = {node for node in self.nodes if node not in varying and node not in self.size}
        self.sized: set[fx.Node] = set()  # constants made of the size of a value
        for node in (node for node in self.nodes if node in self.constant):
            if any(source in self.size or source in self.sized for source in node.all_input_nodes):
                self.sized.add(node)
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
        found = {node: "spiking" if node in before else "readout" for node in after}
        self.region = {node: "spiking" if node in acts else found.get(node, "static") for node in tensors}

    def folded(self, node: fx.Node) -> bool:
        """Return whether time is folded into the batch of a node's output."""
        return self.region.get(node) == "spiking"

    def functional_weights(self, tensor: Callable[[str], Tensor]) -> list[str]:
        """Return the names of the parameters that are weights of a function, as of F.conv2d; `tensor` returns one by its name."""
        found: dict[str, None] = {}
        for node in self.nodes:
            stack = [source for source in node.all_input_nodes if source in self.constant] if call_name(node) in WEIGHTING else []
            while stack:
                source = stack.pop()
                stack += source.all_input_nodes
                if source.op == "get_attr" and isinstance(tensor(source.target), nn.Parameter) and tensor(source.target).dim() > 1:
                    found[source.target] = None
        return list(found)

    def check(self, root: nn.Module) -> None:
        """Raise ValueError if there is no ReLU, or if a call in the spiking region is not affine; names it."""
        if self.nodes[0].op != "placeholder":
            raise ValueError("the network does not read its images")
        if not self.acts:
            other = next((f": {node.target} is {type(called(node, root)).__name__}" for node in self.nodes
                          if type(called(node, root)).__module__ == nn.ReLU.__module__), "")
            raise ValueError(f"the network has no ReLU{other}; train it with ReLUs")
        acts = set(self.acts)
        for node in self.nodes:
            if self.folded(node) and node not in acts:
                reason = objection(node, root, self.folded)
                if reason is not None:
                    raise ValueError(f"{node.target if node.op == 'call_module' else node.name}: {reason}")

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors that a node reads, whole, in part, or only their sizes; without constants."""
        found: list[fx.Node] = []
        for source in node.all_input_nodes:
            if source in self.size or source in self.lists:
                found += self.sources(source)
            elif source not in self.constant:
                found.append(source)
        return found
