"""The current of a unit as Σ_k scale_k · conv_k(spikes_k) + bias, if its affine calls have this form."""

from dataclasses import replace

import torch
from torch import fx, nn

from models import NORMS, Network, Part, moving
from models.graph.calls import POOLS, argument, call_name
from quant import APoTWeight

from ..step_norm import StepNorm
from .integer import Geometry
from .terms import ARITHMETIC, JOINS, MOST, MOVES, Affine, Piece, Pieces, Term, normalization, pads_zeros, weight_integers

MOVING = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
FLAT = (nn.Linear, nn.BatchNorm1d, StepNorm, *SAME)  # they map [B, C] to [B, C']


def normal_form(snn: Network, unit: Part, channels: dict[str, int]) -> Affine | None:
    """Return the normal form of a unit's current; None without one.

    Args:
        channels: of the units before it, if known; that of the unit is added.
    """
    if unit.encodes or unit.shared or any(name not in snn.graph.activations for name in unit.inputs):
        return None
    reader, node, pools = _Reader(snn, channels), unit.result, []
    while node in snn.graph.flow.pools:
        pools, node = [node, *pools], node.args[0]
    found = reader.affine(reader.read(node))
    if found is None or not any(term.weight is not None for term in found.terms):
        return None
    # Max-pooling commutes with one scale and bias, not with several.
    if found.spreads or (pools and (len(found.terms) > 1 or found.bias.dim() == 2)):
        return None
    if any(moving(snn.graph.flow, term.piece.chain, dict(term.piece.windows)) is None for term in found.terms):
        return None
    channels[unit.name] = next(len(term.weight) for term in found.terms if term.weight is not None)
    return replace(found, pools=tuple(pools))


def sums(snn: Network, unit: Part, channels: dict[str, int]) -> list[tuple[str, Affine]] | None:
    """Return the values of a unit as affine sums, in order, the current last: sums of spikes, and of values in float64 by name.

    This serves units without a normal form: those that convolve the outputs of convolutions, or that share values with later
    units. None if there are other calls.
    """
    if unit.encodes:
        return None
    reader = _Reader(snn, channels, {snn.graph.values[name]: name for name in unit.inputs if name not in snn.graph.activations})
    found = []
    for name, node in [*((name, snn.graph.values[name]) for name in unit.shared), (unit.name, unit.result)]:
        affine = reader.affine(reader.read(node)) if snn.graph.flow.folded(node) else None
        if affine is None or any(value.dim() > 1 for value in (affine.bias, *(term.scale for term in affine.terms))):
            return None
        found += [*reader.made, (name, affine)]
        reader.values[node] = name
        reader.made.clear()
    pieces = [term.piece for _, affine in found for term in affine.terms]
    return None if any(moving(snn.graph.flow, piece.chain, dict(piece.windows)) is None for piece in pieces) else found


class _Reader:
    """Reads nodes as pieces of spikes or as affine sums of them.

    Attributes:
        values: names of nodes that are values in float64; None if only spikes are read.
        made: sums that are values of their own, since a call reads them as a whole, by name.
    """

    def __init__(self, snn: Network, channels: dict[str, int], values: dict[fx.Node, str] | None = None):
        self.snn, self.channels, self.values = snn, channels, values
        self.made: list[tuple[str, Affine]] = []
        self.names = {path: name for name, path in snn.graph.activations.items()}
        self.flat: dict[fx.Node, bool] = {}
        self.found: dict[fx.Node, Affine | Pieces | None] = {}

    def affine(self, found: Affine | Pieces | None) -> Affine | None:
        """Return pieces as one term of their own; None if they have none."""
        if not isinstance(found, tuple):
            return found
        if len(found) > 1:
            return None
        one = torch.ones((), dtype=torch.float64, device=next(self.snn.parameters()).device)
        return Affine((Term(found[0], None, Geometry(), one / found[0].total),), torch.zeros_like(one))

    def read(self, node: object) -> Affine | Pieces | None:
        """Return a node as pieces or as an affine sum; None if it is neither."""
        if not isinstance(node, fx.Node):
            return None
        if self.values and node in self.values:
            return (Piece(self.values[node]),)
        if node not in self.found:
            self.found[node] = self._read(node)
        return self.found[node]

    def _read(self, node: fx.Node) -> Affine | Pieces | None:
        if node.op == "call_module" and node.target in self.names:
            name = self.names[node.target]
            return (Piece(name, channels=self.channels.get(name)),)
        if self.snn.graph.flow.region.get(node) == "static":  # runs once: not for each step, as a sum would
            return None
        layer, name = self._call(node)
        if isinstance(layer, SAME) or "dropout" in name or name == "clone":
            return self.read(node.args[0])
        if name in JOINS:
            parts = [self._pieces(part) for part in node.args[0]]
            along = argument(node, 1, "dim", 0) == 1 and all(isinstance(part, tuple) for part in parts)
            return tuple(piece for part in parts for piece in part) if along else None
        if isinstance(layer, (*MOVING, *POOLS, nn.AvgPool2d, nn.Upsample)) or (layer is None and name in {*MOVES, "interpolate"}):
            return self._moved(node, layer, self._pieces(node.args[0]))
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            return self._weighted(layer, self._pieces(node.args[0]), self._flat(node.args[0]))
        if isinstance(layer, (*NORMS, StepNorm)):
            inside = self.affine(self.read(node.args[0]))
            if inside is None or layer.running_mean is None:
                return None
            gain, bias = normalization(layer)
            return inside.times(gain).plus(Affine((), bias))
        return self._arithmetic(node, name) if layer is None else None

    def _pieces(self, node: fx.Node) -> Affine | Pieces | None:
        """Return a node as pieces; an affine sum, if values may be made, becomes a value and its piece."""
        found = self.read(node)
        if self.values is None or not isinstance(found, Affine) or found.bias.dim() > 1 or not isinstance(node, fx.Node):
            return found
        self.values[node] = f"%{node.name}"
        self.made.append((self.values[node], found))
        return (Piece(self.values[node]),)

    def _moved(self, node: fx.Node, layer: nn.Module | None, pieces: Affine | Pieces | None) -> Pieces | None:
        """Return pieces after a call that moves them or works on each channel by itself; None after another call."""
        if not isinstance(pieces, tuple):
            return None
        if isinstance(layer, nn.AvgPool2d):
            return self._summed(node, layer, pieces)
        if isinstance(layer, nn.Upsample) or call_name(node) == "interpolate":
            if (layer.mode if layer is not None else argument(node, 3, "mode", "nearest")) != "nearest":
                return None
            return tuple(replace(piece.through(node), windows=(*piece.windows, (node, None))) for piece in pieces)
        if isinstance(layer, POOLS):
            return tuple(piece.through(node) for piece in pieces)
        padded = call_name(node) == "pad" and not pads_zeros(node, pieces[0])
        return (pieces[0].through(node, moves=True),) if len(pieces) == 1 and not padded else None

    def _summed(self, node: fx.Node, pool: nn.AvgPool2d, pieces: Pieces) -> Pieces | None:
        """Return pieces after average pooling, if all its windows are whole and their sums fit into a byte."""
        kernel, stride, padding = ((value, value) if isinstance(value, int) else (*value, *value)[:2]
                                   for value in (pool.kernel_size, pool.stride, pool.padding))
        if padding != (0, 0) or pool.ceil_mode or pool.divisor_override:
            return None
        size, window = kernel[0] * kernel[1], (node, (kernel, stride))
        if any(piece.total * size > MOST for piece in pieces):
            return None
        return tuple(replace(piece.through(node), windows=(*piece.windows, window), total=piece.total * size) for piece in pieces)

    def _weighted(self, layer: nn.Module, pieces: Affine | Pieces | None, flat: bool) -> Affine | None:
        """Return a convolution of pieces: a term for each piece, with its part of the input channels."""
        if not isinstance(pieces, tuple) or (isinstance(layer, nn.Linear) and not flat):
            return None
        geometry = Geometry.of(layer)
        weight, step = weight_integers(layer)
        sizes = [piece.channels for piece in pieces]
        if len(pieces) == 1:
            sizes = [weight.shape[1]]
        elif sizes.count(None) == 1:
            sizes[sizes.index(None)] = weight.shape[1] - sum(size for size in sizes if size is not None)
        if None in sizes or (len(pieces) > 1 and geometry.groups > 1):
            return None
        quantizer = getattr(layer, "weight_quantizer", None)
        peak = quantizer.denominator if isinstance(quantizer, APoTWeight) else 0
        terms = [Term(piece, part, geometry, step / piece.total, peak)
                 for piece, part in zip(pieces, weight.split(sizes, 1), strict=True)]
        return Affine(tuple(terms), torch.zeros_like(step) if layer.bias is None else layer.bias.detach().double())

    def _call(self, node: fx.Node) -> tuple[nn.Module | None, str]:
        """Return the layer that a node calls, None for a function, and the function's name, also of one that follows the mode."""
        layer = self.snn.layer(node.target) if node.op == "call_module" else None
        return layer, call_name(node) if layer is None else getattr(getattr(layer, "function", None), "__name__", "")

    def _flat(self, node: fx.Node) -> bool:
        """Return whether a node is [B, C]: flattened, or made of such nodes by calls that keep the axes."""
        if node not in self.flat:
            layer, name = self._call(node)
            if isinstance(layer, nn.Flatten):
                self.flat[node] = (layer.start_dim, layer.end_dim) == (1, -1)
            elif name == "flatten":
                self.flat[node] = argument(node, 1, "start_dim", 0) == 1 and argument(node, 2, "end_dim", -1) == -1
            elif name in ("view", "reshape"):
                self.flat[node] = len(node.args) == 3
            else:
                keeps = isinstance(layer, FLAT) or name in (*ARITHMETIC, *JOINS, "clone") or "dropout" in name
                self.flat[node] = (keeps or node.target in self.names) and all(map(self._flat, node.all_input_nodes))
        return self.flat[node]

    def _arithmetic(self, node: fx.Node, name: str) -> Affine | None:
        """Return sums, differences, and products with numbers."""
        if name not in ARITHMETIC or node.kwargs:
            return None
        left = self.affine(self.read(node.args[0]))
        if name == "neg":
            return None if left is None else left.times(-1)
        numbers = [value for value in node.args if isinstance(value, int | float)]
        if not numbers:
            right = self.affine(self.read(node.args[1]))
            if left is None or right is None or name not in ("add", "sub"):
                return None
            return left.plus(right.times(-1) if name == "sub" else right)
        inside = left or self.affine(self.read(node.args[1]))
        if inside is None:
            return None
        if name in ("add", "sub"):
            sign = -1 if name == "sub" and left is None else 1
            shift = -numbers[0] if name == "sub" and left is not None else numbers[0]
            return replace(inside.times(sign), bias=inside.bias * sign + shift)
        if left is None and name != "mul":
            return None
        return inside.times(numbers[0] if name == "mul" else 1 / numbers[0])
