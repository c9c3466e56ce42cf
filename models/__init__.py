"""Networks: any module as a graph of units, and float networks by name."""

from .affine import NORMS, WEIGHTED
from .graph import INPUT, Graph, Part, live, mean_over_time, moving, repeat_over_time
from .network import Facts, Network, Recipe, Values, tree
from .registry import CLASSES, REGISTRY, architectures, build, family, file_of, function_of, label, module, recipe, same
from .unit import BasicBlock, Shortcut, Stack, Unit

__all__ = ["CLASSES", "INPUT", "NORMS", "REGISTRY", "WEIGHTED", "BasicBlock", "Facts", "Graph", "Network", "Part", "Recipe",
           "Shortcut", "Stack", "Unit", "Values", "architectures", "build", "family", "file_of", "function_of", "label", "live",
           "mean_over_time", "module", "moving", "recipe", "repeat_over_time", "same", "tree"]
