"""Fast inference: `deploy` turns a spiking network into a faster one that fires the same spikes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from models import INPUT, WEIGHTED, Network, Part, Values, joined, live
from quant import FLOAT_BITS

from ..convert import to_levels
from .excerpt import Excerpt
from .integer import FloatConv, IntegerConv, fits_bytes
from .normal_form import normal_form, sums
from .summing_unit import SummingUnit
from .terms import MOST
from .units import Convolution, ExactUnit, PlainNeuron, SpikingUnit, fuses

WORKING_SET = 30 * 2**20  # bytes of the first (widest) layer's currents and spikes that a CPU's caches hold
SHAPES = {3: "[B, C, L]", 4: "[B, 3, H, W]", 5: "[B, C, D, H, W]"}  # of images, by their number of axes
ALIVE = 4  # a network holds currents and spikes of at most so many layers of that width at once


class Deployed(nn.Module):
    """A spiking network for inference: images [B, 3, H, W] to logits [B, classes], the mean over T; see `deploy`.

    The output of a unit is spikes + zero [T·B, ...]; other values that units share are in float64.
    """

    def __init__(self, snn: Network, convolution: Convolution, chunk: int | None, fused: bool, summing: bool = True):
        super().__init__()
        self.graph, self.time_steps, self.chunk, self.zero = snn.graph, snn.time_steps, chunk, convolution.zero
        self.convolution, self.fused, self.summing = convolution, fused, summing
        self.body = nn.ModuleList(nn.Identity() for _ in snn.graph.units)
        self.index = {unit.name: index for index, unit in enumerate(snn.graph.units)}
        self.thetas = {name: neuron.threshold.detach().double() for name, neuron in snn.units()}
        self.channels: dict[str, int] = {}
        self.chunks: dict[torch.Size, int] = {}  # images of this shape at a time
        for unit in snn.graph.units:
            self.update_(snn, unit)
        self.head = Excerpt(snn, snn.graph.readout, torch.float32)
        layers = [snn.layer(node.target) for node in snn.graph.units[0].nodes
                  if node.op == "call_module" and snn.graph.values[INPUT] in node.all_input_nodes]
        self.dimensions = next((layer.weight.dim() for layer in layers if isinstance(layer, WEIGHTED[:3])), None)  # of images
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_(self, snn: Network, unit: Part) -> None:
        """Take over the parameters of a unit, in place, after it has learned; its threshold stays.

        This is where a unit chooses its implementation: a module that maps the values in the order of `unit.inputs` to a tuple
        of its spikes and of the values `unit.shared`, and has a `FusedNeuron` as `neuron`. For units in normal form
        `convolution` says how spikes are stored (`zero`, `dtype`) and is called with numerators and `Geometry`.
        """
        largest = snn.activation(unit.name).kind.most + self.zero
        form = normal_form(snn, unit, self.channels)
        form = form if form and form.fits(largest) else None
        found = sums(snn, unit, self.channels) if form is None and self.summing else None
        found = found if found and all(affine.fits(largest) for _, affine in found) else None
        if found is not None:
            self.body[self.index[unit.name]] = SummingUnit(snn, unit, found, self.thetas, self.convolution, self.fused)
        elif form is None or not fuses(snn.activation(unit.name)):
            self.body[self.index[unit.name]] = ExactUnit(snn, unit, self.thetas, self.convolution, self.fused)
        else:
            self.body[self.index[unit.name]] = SpikingUnit(snn, unit, form, self.thetas, self.convolution, self.fused)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]; see `parts` for what it raises."""
        found = [self._read(self.means(self.advance({INPUT: part}))) for part in self.parts(images)]
        return spoiled(joined(torch.cat, found), images)

    @torch.inference_mode()
    def readouts(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to the logits [T, B, classes] after the first T' = 1..T steps of output."""
        found = [self._early(self.advance({INPUT: part})) for part in self.parts(images)]
        return spoiled(joined(partial(torch.cat, dim=1), found), images)

    def _early(self, values: Values) -> Tensor:
        rates = {name: self.neuron(name).rates(value) for name, value in values.items() if name in self.index}
        found = [self._read({name: rates[name][steps - 1] if name in rates else self.mean(name, value, steps)
                             for name, value in values.items()}) for steps in range(1, self.time_steps + 1)]
        return joined(torch.stack, found)

    @torch.no_grad()
    def firing_rates(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean output θ · firing rate [B, ...] of each unit, by name."""
        rates: dict[str, list[Tensor]] = {}
        for part in self.parts(images):
            values = {INPUT: part}
            for unit in self.graph.units:
                values, spikes = self.step(unit, values)
                rates.setdefault(unit.name, []).append(self.neuron(unit.name).rate(spikes))
        return {name: torch.cat(parts) for name, parts in rates.items()}

    @torch.no_grad()
    def step(self, unit: Part, values: Values) -> tuple[Values, Tensor]:
        """Run a unit; return the values that later units still read, and its spikes."""
        with torch.autocast(values[unit.inputs[0]].device.type, enabled=False):  # half precision has too few bits for the sums
            spikes, *shared = self.body[self.index[unit.name]](*(values[name] for name in unit.inputs))
        return live(values | dict(zip(unit.shared, shared, strict=True)) | {unit.name: spikes}, unit), spikes

    @torch.no_grad()
    def advance(self, values: Values, start: int = 0, stop: int | None = None) -> Values:
        """Run the units [start, stop) on the values before them."""
        for unit in self.graph.units[start:stop]:
            values, _ = self.step(unit, values)
        return values

    @torch.no_grad()
    def means(self, values: Values) -> Values:
        """Return values as means over time, [B, ...], as an ANN's units take them."""
        return {name: self.mean(name, value) for name, value in values.items()}

    def mean(self, name: str, value: Tensor, steps: int | None = None) -> Tensor:
        """Return the mean of a value over the first steps, by default all; a value without time as it is."""
        if name in self.index:
            return self.neuron(name).rate(value)
        if self.graph.flow.folded(self.graph.values[name]):
            value = value.unflatten(0, (self.time_steps, -1))[:steps].mean(0)
        return value.float()

    @torch.inference_mode()
    def finish(self, values: Values, index: int) -> Tensor:
        """Return the logits [B, classes] for the values before a unit."""
        return self._read(self.means(self.advance(values, index)))

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Split images into parts that go through the network one after the other.

        Raises:
            ValueError: the images are not floating-point numbers (normalise pixels first), or there is none.
        """
        if not images.is_floating_point() or len(images) == 0 or images.dim() != (self.dimensions or images.dim()):
            shape = SHAPES.get(self.dimensions, "[B, ...]")
            raise ValueError(f"images are {images.dtype} of shape {list(images.shape)}: normalised floating-point numbers {shape} "
                             "are needed, of at least one image")
        chunk = self.chunk or self.fitting_chunk(images)
        return images.split(chunk) if len(images) > chunk else (images,)

    def fitting_chunk(self, images: Tensor) -> int:
        """Return how many images go through the network at a time, the same for all batches of a shape.

        On a CPU so many that the caches hold the currents and spikes of the first, usually widest layer; on a GPU so many that
        those of some such layers fit into a quarter of the memory that is free at first.
        """
        shape = images.shape[1:]
        if shape not in self.chunks:
            current, *_ = self.body[0].calls(self.time_steps, images[:1].double())  # the first activation sees only images
            size = max(1, self.time_steps * current.numel() * (4 + self.body[0].neuron.dtype.itemsize))
            room = torch.cuda.mem_get_info(images.device)[0] // (4 * ALIVE) if images.is_cuda else WORKING_SET
            self.chunks[shape] = max(1, room // size)
        return self.chunks[shape]

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, neuron) of each unit; the neuron's `decode` turns its output into s·θ."""
        for name in self.index:
            yield name, self.neuron(name)

    def neuron(self, name: str) -> nn.Module:
        """Return the neuron of a unit."""
        return self.body[self.index[name]].neuron

    @property
    def plain(self) -> bool:
        """Return whether neurons run by their equation, since no fused pass fires the same."""
        return any(isinstance(neuron, PlainNeuron) for _, neuron in self.units())

    def exact_units(self) -> list[str]:
        """Return the names of the units that see spikes, have no normal form and run in float64."""
        pairs = zip(self.graph.units, self.body, strict=True)
        return [unit.name for unit, module in pairs if not isinstance(module, SpikingUnit) and not unit.encodes]

    def _read(self, means: Values) -> Tensor:
        readout = self.graph.readout
        with torch.autocast(means[readout.inputs[0]].device.type, enabled=False):
            return self.head(1, *(means[name] for name in readout.inputs))[0]


def spoiled(outputs: Any, images: Tensor) -> Any:
    """Return outputs; on a GPU they are NaN if the images hold NaN or infinity, since a check there would make it wait."""
    if not images.is_cuda:
        return outputs
    nothing = (images - images).sum()  # 0, or NaN
    return tree_map(lambda x: x + nothing.to(x.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, outputs)


@torch.no_grad()
def deploy(snn: Network, integer: bool | None = None, chunk: int | None = None, compile: bool = True) -> Deployed:
    """Return a network for inference that fires the same spikes; later changes of `snn` do not reach it.

    A unit in normal form, Σ_k scale_k · conv_k(spikes_k) + bias, convolves spikes as integers with weights as integers, which is
    exact; scales, bias and neuron are one pass over the accumulators. Other units run in float64 with the same neuron, as they are
    or as sums of such convolutions: `Deployed.exact_units` names them. The spikes are those of `snn` in float64; in float32, `snn`
    rounds its currents, so that a spike at the threshold sometimes comes a step early or late. Where hidden weights are float
    (resnet18, ImageNet's recipes) the accumulators are rounded too.

    Args:
        snn: a spiking network; or a quantized one, which is one of a single step: its values are those of a float64 run too.
        integer: convolve bytes (on a CPU; on a GPU the float path is exact too); None: if the weights allow it.
        chunk: images at a time; by default as many as fit into a CPU's caches, or a quarter of a GPU's free memory.
        compile: compile the neuron where there is no C++ of it, as on a GPU; uncompiled it is only slower.

    Raises:
        ValueError: a float network; with `integer`, hidden weights that are not small integers, or levels that no byte holds.
    """
    if not isinstance(snn, Network) or (snn.neuron is None and snn.bit == FLOAT_BITS):
        raise ValueError("a float network has no spikes and no levels: deploy takes what to_spiking returns, or quantize_")
    if snn.neuron is None:
        snn = to_levels(snn)
    few = all(neuron.kind.most < 2 * MOST for _, neuron in snn.units())
    if integer and not few:
        raise ValueError(f"integer=True: bytes do not hold the {2**snn.bit} levels of a {snn.bit}-bit network; leave it out")
    if integer is None:
        integer = few and all(fits_bytes(snn.layer(path)) for path, region in snn.graph.regions.items() if region == "spiking")
    on_cpu = next(snn.parameters()).device.type == "cpu"
    return Deployed(snn, IntegerConv if integer and on_cpu else FloatConv, chunk, compile)
