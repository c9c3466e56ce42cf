"""Units of a deployed network that sum in float64: exact convolutions of spikes, and convolutions of other values."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models import Network, Part, moving, repeat_over_time

from .excerpt import movers
from .integer import Convolution, Geometry, on_places
from .terms import Affine, along_channels
from .units import PlainNeuron, exact_neuron


class SummingUnit(nn.Module):
    """A unit that computes affine sums of spikes and of values in float64; spikes are convolved as integers.

    Args:
        found: see `sums`.
        thetas: thresholds of the units whose spikes it reads, by name.
        convolution: convolves spikes; see `Deployed.update_`.
    """

    def __init__(self, snn: Network, unit: Part, found: list[tuple[str, Affine]], thetas: dict[str, Tensor],
                 convolution: Convolution, fused: bool):
        super().__init__()
        neuron = snn.activation(unit.name)
        self.unit, self.zero, self.thetas = unit, convolution.zero, thetas
        self.root = movers(snn, unit)
        self.still = {name for name in unit.inputs if name not in thetas and not snn.graph.flow.folded(snn.graph.values[name])}
        self.results = [name for name, _ in found[:-1]]
        *values, (_, current) = found
        self.neuron = exact_neuron(neuron, convolution, fused, current.bias)
        bare = replace(current, bias=torch.zeros_like(current.bias))  # its bias is the neuron's
        self.sums = nn.ModuleList(_Sum(snn, affine, thetas, convolution) for affine in (*(affine for _, affine in values), bare))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map values in the unit's order, spikes as they are stored, to (spikes + zero [T·B, ...], *shared values)."""
        steps = self.neuron.time_steps
        values = dict(zip(self.unit.inputs, inputs, strict=True))
        values |= {name: repeat_over_time(values[name].double(), steps) for name in self.still}
        *totals, current = self.sums
        for name, total in zip(self.results, totals, strict=True):
            values[name] = total(self.root, steps, values)
        if current.weight is None or isinstance(self.neuron, PlainNeuron):
            spikes = self.neuron(current(self.root, steps, values), None)
        else:
            spikes = self.neuron(current.moved(0, self.root, steps, values), None, weight=current.weight)
        return spikes, *(values[name] for name in self.unit.shared)


class _Sum(nn.Module):
    """Σ_k scale_k · conv_k(x_k) + bias in float64, of values by name.

    Each pass over a float64 tensor costs as much as a convolution of bytes, so that sums are added in place.

    Attributes:
        weight: [C', C] where the sum is no more than a 1x1 convolution of a value, else None.
    """

    def __init__(self, snn: Network, affine: Affine, thetas: dict[str, Tensor], convolution: Convolution):
        super().__init__()
        # A term that is not a 1x1 convolution of a value comes first, since the bias joins it without a pass of its own.
        terms = sorted(affine.terms, key=lambda term: term.weight is not None and term.piece.source not in thetas)
        self.pieces, self.zero, self.thetas = [term.piece for term in terms], convolution.zero, thetas
        self.moves = [moving(snn.graph.flow, piece.chain, dict(piece.windows), self.zero * (piece.source in thetas))
                      for piece in self.pieces]
        convs: list[nn.Module] = []
        for index, term in enumerate(terms):
            scale = term.scale * thetas.get(term.piece.source, 1.0)
            if term.weight is not None and term.piece.source not in thetas:  # a value: the scale goes into the weights
                convs.append(ExactConv(term.weight * scale.view(-1, *[1] * (term.weight.dim() - 1)), term.geometry))
            else:
                convs.append(nn.Identity() if term.weight is None
                             else convolution(term.weight, term.geometry, term.piece.total, term.integral))
            self.register_buffer(f"scale_{index}", scale)
        self.convs = nn.ModuleList(convs)
        self.register_buffer("bias", affine.bias)
        alone = len(convs) == 1 and isinstance(convs[0], ExactConv) and convs[0].product and not affine.bias.any()
        self.weight = convs[0].weight[:, :, 0, 0] if alone else None

    def forward(self, root: nn.Module, steps: int, values: dict[str, Tensor]) -> Tensor:
        """Return the sum [T·B, C, ...]."""
        total: Tensor | None = None
        for index, conv in enumerate(self.convs):
            x = self.moved(index, root, steps, values)
            if isinstance(conv, ExactConv):
                y = on_places(conv, x)
                total = y + along_channels(self.bias, y) if total is None else roomy(total, y).add_(y)
                continue
            piece = self.pieces[index]
            stored = piece.source in self.thetas and isinstance(conv, nn.Identity)
            x = x.double() - self.zero * piece.total if stored else on_places(conv, x).double()
            scale = along_channels(getattr(self, f"scale_{index}"), x)
            total = torch.addcmul(along_channels(self.bias, x), x, scale) if total is None else roomy(total, x).addcmul_(x, scale)
        return total

    def moved(self, index: int, root: nn.Module, steps: int, values: dict[str, Tensor]) -> Tensor:
        """Return the values that a term convolves."""
        return self.moves[index](root, steps, values[self.pieces[index].source])


def roomy(total: Tensor, x: Tensor) -> Tensor:
    """Return a sum to which x can be added in place: itself, or a copy of the shape to which both broadcast."""
    shape = torch.broadcast_shapes(total.shape, x.shape)
    return total if total.shape == shape else total.expand(shape).clone()


class ExactConv(nn.Module):
    """Convolution in float64; a 1x1 convolution of images whose channels are last is one product of matrices."""

    def __init__(self, weight: Tensor, geometry: Geometry):
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.geometry, self.product = geometry, geometry.is_product(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T·B, C, H, W] float64 to [T·B, C', H', W']."""
        return self.geometry.multiply(x, self.weight)
