"""The units of a deployed network: convolutions of integers with the fused neuron after them, or affine calls in float64."""

from copy import deepcopy
from functools import lru_cache

import torch
from torch import Tensor, nn

from models import INPUT, Network, Part, moving

from ..functional import RETRACTION
from ..native import calls
from ..neuron import IFNeuron, Neuron
from .excerpt import Excerpt, movers
from .fused import SMALLEST, FusedNeuron, fire, fire_levels, neuron_constants
from .integer import Convolution, on_places
from .terms import Affine, along_channels


class LevelNeuron(FusedNeuron):
    """A quantized ReLU on accumulators: a neuron that runs one step and fires up to `most` spikes in it.

    Args:
        currents: see `fire_levels`; None: the accumulators are currents, without the bias in `constants`.
    """

    def __init__(self, neuron: IFNeuron, constants: Tensor, convolution: Convolution, fused: bool, currents: Tensor | None = None):
        bias = constants[1, 0]
        currents = torch.stack((torch.ones_like(bias), bias))[:, None] if currents is None else currents
        super().__init__(neuron, constants, convolution, fused, currents)
        self.most = neuron.kind.most

    def pass_(self) -> tuple:
        """Return the fused pass and its arguments between the second input and the others."""
        return fire_levels, self.currents, self.constants, self.most, self.zero, self.dtype


class PlainNeuron(FusedNeuron):
    """A neuron of a kind without a fused pass: its equation runs on currents in float64."""

    def __init__(self, neuron: IFNeuron, convolution: Convolution, bias: Tensor):
        super().__init__(neuron, float64_constants(neuron), convolution, fused=False)
        self.plain = deepcopy(neuron).double()
        self.register_buffer("bias", bias)

    def forward(self, accumulator: Tensor, second: Tensor | None = None, *others: Tensor) -> Tensor:
        """Map currents [T·B, ...], or [B, ...] if the neuron encodes, to spikes + zero [T·B, ...]."""
        current = accumulator + along_channels(self.bias, accumulator)
        return (self.plain.spike_train(current) + self.zero).to(self.dtype).flatten(0, 1)


def fuses(neuron: IFNeuron) -> bool:
    """Return whether the fused pass fires as the neuron's equation does, and so does the same in C++."""
    known = neuron.kind.most > 1 or neuron.kind.signed is not None
    return known and _agrees(neuron.kind, neuron.time_steps, neuron.delay, neuron.start)


@lru_cache
@torch.no_grad()
def _agrees(kind: Neuron, time_steps: int, delay: int, start: float) -> bool:
    """Compare the fused pass with an equation on random currents in float64; once, since tuning deploys in each step."""
    plain = IFNeuron(nn.Parameter(torch.ones(1, dtype=torch.float64), False), time_steps, kind, delay, False, start)
    generator, constants = torch.Generator().manual_seed(0), float64_constants(plain)
    current = 0.7 * kind.most * torch.randn(time_steps, 512, 1, generator=generator, dtype=torch.float64)
    if kind.most > 1:
        same = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1)  # scale and bias of currents
        passes, how = (fire_levels, calls.fire_levels), (same, constants, kind.most, 0, torch.float64)
    else:
        passes, how = (fire, calls.fire), (constants, time_steps, kind.signed, delay, 0, torch.float64, start)
    expected = plain.spike_train(current.flatten(0, 1))
    return all(found is None or torch.equal(found, expected) for found in (run(current, None, *how) for run in passes))


def float64_constants(neuron: IFNeuron, current: Tensor | None = None) -> Tensor:
    """Return the constants of `fire` [4, 1, C] for currents in float64.

    The bias is the neuron's and that of the `current`, [C] or [], which it comes without.
    """
    bias = torch.zeros_like(neuron.threshold)[None] if neuron.bias is None else neuron.bias.detach()
    bias = bias.double() if current is None else bias.double() + current
    constants = bias.new_zeros(4, 1, len(bias))
    constants[0, 0], constants[1, 0], constants[3, 0] = neuron.threshold.detach(), bias, RETRACTION
    return constants


def exact_neuron(neuron: IFNeuron, convolution: Convolution, fused: bool, bias: Tensor | None = None) -> FusedNeuron:
    """Return a neuron on currents in float64, to which it adds `bias`, [C] or []."""
    if fuses(neuron):
        fused_neuron = LevelNeuron if neuron.kind.most > 1 else FusedNeuron
        return fused_neuron(neuron, float64_constants(neuron, bias), convolution, fused)
    return PlainNeuron(neuron, convolution, torch.zeros_like(neuron.threshold).double() if bias is None else bias)


class ExactUnit(nn.Module):
    """A unit whose layers run in float64: it sees images, so that its current is constant, or has no normal form.

    Args:
        thetas: thresholds of the units whose spikes it reads, by name.
    """

    def __init__(self, snn: Network, unit: Part, thetas: dict[str, Tensor], convolution: Convolution, fused: bool):
        super().__init__()
        neuron = snn.activation(unit.name)
        self.calls, self.inputs, self.thetas, self.zero = Excerpt(snn, unit, torch.float64), unit.inputs, thetas, convolution.zero
        self.neuron = exact_neuron(neuron, convolution, fused)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map values in the unit's order, spikes as they are stored, to (spikes + zero [T·B, ...], *shared values).

        Raises:
            ValueError: NaN or infinity in images on a CPU; on a GPU see `spoiled` of deploy.py.
        """
        images = inputs[self.inputs.index(INPUT)] if INPUT in self.inputs else None
        if images is not None and not images.is_cuda and not torch.isfinite(images).all():
            raise ValueError("the images hold NaN or infinity, in which no neuron would fire")
        current, *shared = self.current(*inputs)
        return self.neuron(current, None), *shared

    def current(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map values as `forward` does to (the neuron's current, *shared values), float64."""
        values = [(x.double() - self.zero) * self.thetas[name] if name in self.thetas else x.double()
                  for name, x in zip(self.inputs, inputs, strict=True)]
        current, *shared = self.calls(self.neuron.time_steps, *values)
        return current.double(), *shared


def share_current_(first: nn.Module, second: nn.Module) -> None:
    """Let the second unit take the current that the first one has computed of the same images, in place.

    Only where both see images alone, by the same weights: the first units of an ANN and of its SNN.
    """
    units = first, second
    if not all(isinstance(unit, ExactUnit) and unit.inputs == (INPUT,) and unit.neuron.encodes for unit in units):
        return
    states = [unit.calls.state_dict() for unit in units]
    if states[0].keys() != states[1].keys() or not all(torch.equal(states[0][name], states[1][name]) for name in states[0]):
        return
    compute, kept = first.current, []

    def computed(images: Tensor) -> tuple[Tensor, ...]:
        kept[:] = [(images, compute(images))]
        return kept[0][1]

    def taken(images: Tensor) -> tuple[Tensor, ...]:
        return kept.pop()[1] if kept and kept[0][0] is images else compute(images)

    first.current, second.current = computed, taken


class SpikingUnit(nn.Module):
    """A unit in normal form: convolutions of integers, then the neuron with scales, bias and further terms in it.

    Args:
        form: Σ_k scale_k · conv_k(spikes_k) + bias, see `normal_form`.
        thetas: thresholds of the units whose spikes it reads, by name.
        convolution: convolves spikes; see `Deployed.update_`.
    """

    def __init__(self, snn: Network, unit: Part, form: Affine, thetas: dict[str, Tensor], convolution: Convolution, fused: bool):
        super().__init__()
        neuron = snn.activation(unit.name)
        # The term with the most weights is the accumulator, in whose units all other terms are counted.
        terms = sorted(form.terms, key=lambda term: 0 if term.weight is None else -term.weight.numel())
        first = terms[0]
        scales = [term.scale * thetas[term.piece.source] for term in terms]
        # In a term that is spikes as they are stored, the value that stands for 0 goes into the bias.
        totals = [term.piece.total for term in terms]
        bias = form.bias - sum(convolution.zero * total * scale for scale, total, term in zip(scales, totals, terms, strict=True)
                               if term.weight is None)
        sums = [total * (1 + convolution.zero if term.weight is None else term.weight.abs().sum((1, 2, 3)))
                for total, term in zip(totals, terms, strict=True)]
        weights, channels, steps = [term.weight for term in terms], len(first.weight), neuron.time_steps
        if max(value.dim() for value in (*scales, bias)) == 2:  # BN of each time step
            values = [*scales[:1], bias, *(scales[1:] or [torch.zeros_like(bias)])]
            rows = [value.expand(len(value) if value.dim() == 2 else steps, channels)[:steps] for value in values]
            currents = torch.stack(rows)
            self.neuron = FusedNeuron(neuron, float64_constants(neuron), convolution, fused, currents)
        else:
            scale, *factors = (value.expand(channels) for value in scales)
            # Comparisons need a positive scale: a negative one goes into the weights, and so does a zero. One by which float32
            # cannot divide, as of a channel that weight decay has silenced, is a zero.
            scale = torch.where(scale.abs() < SMALLEST, 0, scale)
            weights[0] = first.weight * scale.sign()[:, None, None, None]
            scale = torch.where(scale == 0, 1, scale.abs())
            largest = sum((factor.abs() / scale * total for factor, total in zip(factors, sums[1:], strict=True)), sums[0])
            bias = bias.expand(channels) if neuron.bias is None else bias + neuron.bias.detach().double()
            factor, *others = factors or [torch.zeros_like(scale)]
            threshold = neuron.threshold.detach().double().expand_as(scale)
            if neuron.kind.most > 1:
                currents = torch.stack((scale, bias, factor, *others))[:, None]
                self.neuron: FusedNeuron = LevelNeuron(neuron, float64_constants(neuron), convolution, fused, currents)
            else:
                constants = neuron_constants(scale, threshold, bias, factor, largest, steps, *others)
                self.neuron = FusedNeuron(neuron, constants, convolution, fused)
        self.convs = nn.ModuleList(
            nn.Identity() if weight is None else convolution(weight, term.geometry, term.piece.total, term.integral)
            for weight, term in zip(weights, terms, strict=True))
        self.pool = moving(snn.graph.flow, form.pools, {})
        self.moves = [moving(snn.graph.flow, term.piece.chain, dict(term.piece.windows), convolution.zero) for term in terms]
        self.root = movers(snn, unit)
        self.reads = [unit.inputs.index(term.piece.source) for term in terms]

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Map spikes + zero in the unit's order to (spikes + zero [T·B, ...],)."""
        spikes = [move(self.root, self.neuron.time_steps, inputs[index])
                  for move, index in zip(self.moves, self.reads, strict=True)]
        terms = [on_places(conv, x) for conv, x in zip(self.convs, spikes, strict=True)]
        # With a positive scale and the same bias everywhere, the largest accumulator gives the largest current.
        terms[0] = self.pool(self.root, self.neuron.time_steps, terms[0])
        if any(x.shape != terms[0].shape for x in terms):
            terms = list(torch.broadcast_tensors(*terms))
        return (self.neuron(terms[0], *(terms[1:] or [None])),)
