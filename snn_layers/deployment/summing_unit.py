"""Units of a deployed network that sum in float64: exact convolutions of spikes, and convolutions of other values."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Network, Part, moving, repeat_over_time

from .integer import Geometry
from .terms import Affine, along_channels
from .units import Convolution, exact_neuron, movers, on_places


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
        self.results = [name for name, _ in found]
        self.sums = nn.ModuleList(_Sum(snn, affine, thetas, convolution) for _, affine in found)
        self.neuron = exact_neuron(neuron, convolution, fused)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map values in the unit's order, spikes as they are stored, to (spikes + zero [T·B, ...], *shared values)."""
        steps = self.neuron.time_steps
        values = dict(zip(self.unit.inputs, inputs, strict=True))
        values |= {name: repeat_over_time(values[name].double(), steps) for name in self.still}
        for name, total in zip(self.results, self.sums, strict=True):
            values[name] = total(self.root, steps, values)
        return self.neuron(values[self.unit.name], None), *(values[name] for name in self.unit.shared)


class _Sum(nn.Module):
    """Σ_k scale_k · conv_k(x_k) + bias in float64, of values by name."""

    def __init__(self, snn: Network, affine: Affine, thetas: dict[str, Tensor], convolution: Convolution):
        super().__init__()
        self.pieces, self.zero, self.thetas = [term.piece for term in affine.terms], convolution.zero, thetas
        self.moves = [moving(snn.graph.flow, piece.chain, dict(piece.windows)) for piece in self.pieces]
        convs: list[nn.Module] = []
        for index, term in enumerate(affine.terms):
            scale = term.scale * thetas.get(term.piece.source, 1.0)
            if term.weight is not None and term.piece.source not in thetas:  # a value: the scale goes into the weights
                convs.append(ExactConv(term.weight * scale.view(-1, *[1] * (term.weight.dim() - 1)), term.geometry))
                scale = torch.ones_like(term.scale[:1] if term.scale.dim() else term.scale)
            else:
                convs.append(nn.Identity() if term.weight is None
                             else convolution(term.weight, term.geometry, term.piece.total, term.integral))
            self.register_buffer(f"scale_{index}", scale)
        self.convs = nn.ModuleList(convs)
        self.register_buffer("bias", affine.bias)

    def forward(self, root: nn.Module, steps: int, values: dict[str, Tensor]) -> Tensor:
        """Return the sum [T·B, C, ...]."""
        total: Tensor | None = None
        for index, (piece, move, conv) in enumerate(zip(self.pieces, self.moves, self.convs, strict=True)):
            x = move(root, steps, values[piece.source])
            whole, scale = isinstance(conv, ExactConv), getattr(self, f"scale_{index}")
            if piece.source in self.thetas and isinstance(conv, nn.Identity):
                x = x.double() - self.zero * piece.total
            else:
                x = on_places(conv, x).double()
            scaled = x if whole else x * along_channels(scale, x)
            total = scaled if total is None else total + scaled
        return total + along_channels(self.bias, total)


class ExactConv(nn.Module):
    """Convolution in float64; a 1x1 convolution of images whose channels are last is one product of matrices."""

    def __init__(self, weight: Tensor, geometry: Geometry):
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.geometry, self.product = geometry, weight.shape[2:] == (1, 1) and geometry == Geometry()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T·B, C, H, W] float64 to [T·B, C', H', W']."""
        if not self.product:
            return self.geometry.convolve(x, self.weight)
        return F.linear(x.movedim(1, -1), self.weight[:, :, 0, 0]).movedim(-1, 1)
