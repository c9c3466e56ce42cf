"""Networks as files hold them: a deployed network with spikes, or a quantized network with counts, as bytes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map

from models import INPUT, Network, live

from ..convert import to_levels
from ..deployment.deploy import Deployed
from ..deployment.fused import FusedNeuron
from ..deployment.integer import Geometry
from ..deployment.terms import along_channels
from ..deployment.units import ExactUnit


class ByteConv(nn.Module):
    """Convolution of bytes x - zero, in a floating-point type; if the weights are integers, a file has ConvInteger for it."""

    def __init__(self, weight: Tensor, geometry: Geometry, zero: int):
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.geometry, self.zero = geometry, zero

    def forward(self, x: Tensor) -> Tensor:
        """Map bytes [N, C, H, W] to accumulators [N, C', H', W']."""
        x = x.to(self.weight.dtype)
        return self.geometry.convolve(x - self.zero if self.zero else x, self.weight)


class ByteConvolution:
    """The convolution of a `Deployed` network: it says how bytes are stored, and makes the layers that convolve them.

    Args:
        zero: byte that stands for 0.
        rounds: weights that are not integers are convolved in float32, as `Deployed` does, not in float64.
    """

    dtype = torch.uint8

    def __init__(self, zero: int, rounds: bool):
        self.zero, self.rounds = zero, rounds

    def __call__(self, weight: Tensor, geometry: Geometry, total: int, integral: bool) -> ByteConv:
        """Return the convolution of sums of `total` bytes with these numerators."""
        return ByteConv(weight.float() if integral or self.rounds else weight.double(), geometry, self.zero * total)


class Activation(nn.Module):
    """A fused neuron on the accumulators of a unit, unrolled over time."""

    def __init__(self, neuron: FusedNeuron):
        super().__init__()
        self.neuron = neuron
        self.time_steps, self.zero, self.encodes = neuron.time_steps, neuron.zero, neuron.encodes

    def forward(self, accumulator: Tensor, second: Tensor | None, *others: Tensor) -> Tensor:
        """Map [T·B, C, ...], or [B, C, ...] if the neuron encodes, to spikes + zero [T·B, C, ...]."""
        def steps(x: Tensor) -> Tensor:
            return x.unflatten(0, (1 if self.encodes else self.time_steps, -1))

        function, *how = self.neuron.pass_()
        how = [along_channels(value, accumulator) if isinstance(value, Tensor) else value for value in how]
        return function(steps(accumulator), None if second is None else steps(second), *how, *map(steps, others)).flatten(0, 1)

    def rate(self, x: Tensor) -> Tensor:
        """Return the mean output θ · firing rate."""
        return self.neuron.rate(x)

    def rates(self, x: Tensor) -> Tensor:
        """Return `rate` over the first T' = 1..T steps."""
        return self.neuron.rates(x)


class Exported(nn.Module):
    """A network as files hold it: images [B, C, H, W] to outputs by name, without checks of values.

    Outputs are "logits" [B, classes] and, of a spiking network, "readouts" [T, B, classes] after 1..T steps; a network of
    several outputs has "logits.NAME" and "readouts.NAME".
    """

    def __init__(self, deployed: Deployed, spiking: bool):
        super().__init__()
        self.deployed, self.spiking = deployed, spiking

    def at(self, place: str) -> None:
        """Name the unit that runs next; see `record`."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        deployed, values = self.deployed, {INPUT: images}
        for unit, module in zip(deployed.graph.units, deployed.body, strict=True):
            self.at(unit.name)
            spikes, *shared = module(*(values[name] for name in unit.inputs))
            values = live(values | dict(zip(unit.shared, shared, strict=True)) | {unit.name: spikes}, unit)
        self.at("readout")
        if not self.spiking:
            return named("logits", deployed._read(deployed.means(values)))
        early = deployed._early(values)
        return named("logits", tree_map(lambda x: x[-1], early)) | named("readouts", early)


def named(stem: str, outputs: Any) -> dict[str, Tensor]:
    """Return tensors of any structure by name."""
    def name(path: tuple) -> str:
        return ".".join([stem, *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)])

    return {name(path): tensor for path, tensor in tree_flatten_with_path(outputs)[0]}


@torch.no_grad()
def exported(network: Network) -> Exported:
    """Return a quantized or a spiking network as files hold it; it shares no tensor that training changes.

    Raises:
        ValueError: a float network, an ANN with BN of each time step, or neurons whose equation no fused pass computes.
    """
    spiking = network.neuron is not None
    if not spiking:
        network = to_levels(network)
    deployed = Deployed(network, ByteConvolution(int(network.neuron == "signed"), rounds=spiking), None, False, summing=False)
    if deployed.plain:
        raise ValueError("neurons run by an equation of one's own, which no fused pass computes: a file cannot hold them")
    for unit in deployed.body:
        if isinstance(unit, ExactUnit):  # it checks the images for NaN, and a file cannot
            unit.inputs = tuple("" if name == INPUT else name for name in unit.inputs)
        unit.neuron = Activation(unit.neuron)
    # In PyTorch's channels-last format some operators write strides in place, which no file can hold.
    return Exported(deployed, spiking).eval().to(memory_format=torch.contiguous_format)
