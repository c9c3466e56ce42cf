"""Networks: any module as a graph of units, and float networks by name."""

from .errors import reason_of
from .graph.affine import NORMS, WEIGHTED
from .graph.calls import plain_kind
from .graph.copies import tree
from .graph.network import Facts, Network, Recipe, Values, joined
from .graph.regions import INPUT, Graph, Part, live
from .graph.writing import mean_over_time, moving, repeat_over_time
from .registry import CLASSES, REGISTRY, architectures, build, failing, family, file_of, function_of, label, module, recipe, same
from .unit import BasicBlock, Shortcut, Stack, Unit

__all__ = ["CLASSES", "INPUT", "NORMS", "REGISTRY", "WEIGHTED", "BasicBlock", "Facts", "Graph", "Network", "Part", "Recipe",
           "Shortcut", "Stack", "Unit", "Values", "architectures", "build", "failing", "family", "file_of", "function_of",
           "joined", "label", "live", "mean_over_time", "module", "moving", "plain_kind", "reason_of", "recipe",
           "repeat_over_time", "same", "tree"]
