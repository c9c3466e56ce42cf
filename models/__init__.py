"""Networks: any module as a graph of units, and float networks by name."""

from .affine import NORMS, WEIGHTED
from .copies import tree
from .graph import INPUT, Graph, Part, live
from .network import Facts, Network, Recipe, Values
from .over_time import mean_over_time, repeat_over_time
from .registry import CLASSES, REGISTRY, architectures, build, family, file_of, function_of, label, module, recipe, same
from .unit import BasicBlock, Shortcut, Stack, Unit
from .writing import moving

__all__ = ["CLASSES", "INPUT", "NORMS", "REGISTRY", "WEIGHTED", "BasicBlock", "Facts", "Graph", "Network", "Part", "Recipe",
           "Shortcut", "Stack", "Unit", "Values", "architectures", "build", "family", "file_of", "function_of", "label", "live",
           "mean_over_time", "module", "moving", "recipe", "repeat_over_time", "same", "tree"]
