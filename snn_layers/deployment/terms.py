"""The parts of currents: terms scale · conv(spikes), and the constants of layers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from models.graph.calls import argument
from quant import APoTWeight

from .integer import EXACT, Geometry

# Calls that move values without changing them: they work on spikes as they are stored.
MOVES = {"flatten", "view", "reshape", "permute", "transpose", "getitem", "chunk", "split", "contiguous", "squeeze", "unsqueeze",
         "flip", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "select", "narrow", "unflatten", "pad"}
ARITHMETIC, JOINS = ("add", "sub", "mul", "truediv", "div", "neg"), ("cat", "concat", "concatenate")
MOST = 64  # spikes in a sum: two products of such sums and weights, 2 · 2 · 64 · 127, fit into 16 bits


@dataclass(frozen=True)
class Piece:
    """Spikes of a unit, or a value in float64, moved or pooled.

    Attributes:
        chain: the calls from the unit's output to these spikes, in order; average pooling adds up.
        windows: kernel and stride of the calls that are average pooling; see `moving`.
        total: spikes that average pooling adds up to one value.
        channels: their number, if known.
    """

    source: str
    chain: tuple[fx.Node, ...] = ()
    windows: tuple[tuple[fx.Node, tuple | None], ...] = ()
    total: int = 1
    channels: int | None = None

    def through(self, node: fx.Node, moves: bool = False) -> "Piece":
        """Return the piece after a call; one that moves values may change the channels."""
        return replace(self, chain=(*self.chain, node), channels=None if moves else self.channels)


Pieces = tuple[Piece, ...]  # concatenated along the channels


@dataclass(frozen=True)
class Term:
    """scale · conv(x), of spikes or of a value in float64.

    Attributes:
        weight: [C', C, k, k] numerators; None is the identity.
        scale: [C'], [] or, of each time step, [T, C'], float64, without the threshold of the source.
        peak: no numerator is larger, and they are integers; 0: they are not.
    """

    piece: Piece
    weight: Tensor | None
    geometry: Geometry
    scale: Tensor
    peak: int = 0

    @property
    def integral(self) -> bool:
        """Return whether the numerators are integers."""
        return self.peak > 0

    def exact(self, largest: int) -> bool:
        """Return whether float32 holds the sums for values up to `largest`; with float weights they round anyway.

        The bound does not read the weights: on a GPU the tuning, which deploys in each step, would wait for them.
        """
        return not self.integral or self.weight[0].numel() * self.peak * self.piece.total * largest < EXACT


@dataclass(frozen=True)
class Affine:
    """A sum of terms and a bias [C], [] or [T, C], float64; if the calls in `pools` then max-pool it, it has one term."""

    terms: tuple[Term, ...]
    bias: Tensor
    pools: tuple[fx.Node, ...] = ()

    def fits(self, largest: int) -> bool:
        """Return whether bytes hold the values up to `largest` that average pooling adds up, and float32 the terms."""
        return all(term.piece.total * largest <= 2 * MOST and term.exact(largest) for term in self.terms)

    @property
    def spreads(self) -> bool:
        """Return whether a term of one channel may be added to all channels of another."""
        widths = {term.piece.channels if term.weight is None else len(term.weight) for term in self.terms}
        return 1 in widths and len(widths) > 1

    def times(self, factor: Tensor | float) -> "Affine":
        """Return the product with a number or with one for each channel."""
        return Affine(tuple(replace(term, scale=term.scale * factor) for term in self.terms), self.bias * factor)

    def plus(self, other: "Affine") -> "Affine":
        """Return the sum; of terms that differ only in their scales it has one."""
        terms: dict[tuple, Term] = {}
        for term in self.terms + other.terms:
            kind = term.piece, id(term.weight), term.geometry
            terms[kind] = replace(terms[kind], scale=terms[kind].scale + term.scale) if kind in terms else term
        return Affine(tuple(terms.values()), self.bias + other.bias)


def weight_integers(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (numerators, step) with quantized weight = step · numerators, as [C', C, k, k] and a float64 scalar.

    Weights that are not APoT-quantized are their own numerators; a linear layer is a 1x1 convolution.
    """
    quantizer = getattr(layer, "weight_quantizer", nn.Identity())
    step = torch.ones((), dtype=torch.float64, device=layer.weight.device)
    weight = quantizer(layer.weight.detach().double())  # a float64 run chooses the same level where float32 lies between two
    if isinstance(quantizer, APoTWeight):
        step = quantizer.alpha.detach().double() / quantizer.denominator
        weight = (weight / step).round()
    return (weight[..., None, None] if weight.dim() == 2 else weight[:, :, None] if weight.dim() == 3 else weight), step


def normalization(bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Return gain and bias, float64, with bn(x) = gain · x + bias in eval mode: [C], of each time step [T, C]."""
    gain = (1 if bn.weight is None else bn.weight.detach().double()) / (bn.running_var.double() + bn.eps).sqrt()
    return gain, (0 if bn.bias is None else bn.bias.detach().double()) - bn.running_mean.double() * gain


def along_channels(constants: Tensor, x: Tensor) -> Tensor:
    """Return constants [..., C] or [] with an axis of 1 for each axis of places of x [N, C, ...]."""
    return constants.view((*constants.shape, *[1] * (x.dim() - 2)))


def pads_zeros(node: fx.Node, piece: Piece) -> bool:
    """Return whether a padding puts zeros on spikes, in a fixed number: not where average pooling has added them up."""
    return (piece.total == 1 and argument(node, 2, "mode", "constant") == "constant" and not argument(node, 3, "value")
            and all(isinstance(value, int) for value in argument(node, 1, "pad")))
