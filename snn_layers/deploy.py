"""Fast inference: `deploy` turns a spiking network into one that computes the same spikes without the layers' detours."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from models import Network, State, Unit
from quant import APoTWeight

from .deployed_units import Convolution, EncodingUnit, FusedNeuron, SpikingUnit
from .integer import LARGEST, FloatConv, IntegerConv
from .states import run

WORKING_SET = 20 * 2**20  # bytes of currents and spikes of the first, widest layer that a CPU's caches hold


class Deployed(nn.Module):
    """A spiking network for inference: images [B, 3, H, W] to logits [B, classes], the mean over T; see `deploy`."""

    def __init__(self, snn: Network, convolution: Convolution, chunk: int | None, fused: bool):
        super().__init__()
        self.time_steps, self.chunk, self.zero = snn.time_steps, chunk, convolution.zero
        self.convolution, self.fused = convolution, fused
        self.sites = snn.sites()
        self.body = nn.ModuleList(site.module for site in self.sites)
        for index, site in enumerate(self.sites):
            if isinstance(site.module, Unit):
                self.update_(index, site.module)
        self.pool, self.head = snn.pool, nn.Linear(snn.head.in_features, snn.head.out_features, device="meta")
        quantizer = getattr(snn.head, "weight_quantizer", nn.Identity())
        self.head.weight = nn.Parameter(quantizer(snn.head.weight).detach().float().clone())
        self.head.bias = nn.Parameter(snn.head.bias.detach().float().clone())
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def update_(self, index: int, unit: Unit) -> None:
        """Take over what the unit at a site has learned, in place; its threshold stays."""
        thetas = [neuron.threshold for neuron in self._neurons(index)]
        if thetas:
            residual_theta = thetas[-2] if self.sites[index].joins else None
            module = SpikingUnit(unit, thetas[-1], residual_theta, self.convolution, self.fused)
        else:
            module = EncodingUnit(unit, self.convolution, self.fused)
        self.sites[index], self.body[index] = replace(self.sites[index], module=module), module

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]."""
        *_, last = self._neurons(len(self.sites))
        return self._logits(torch.cat([self.pool(last.rate(spikes)) for spikes in self._outputs(images)]))

    @torch.inference_mode()
    def readouts(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to the logits [T, B, classes] after the first T' = 1..T steps of output."""
        *_, last = self._neurons(len(self.sites))
        pooled = [self.pool(last.rates(spikes).flatten(0, 1)) for spikes in self._outputs(images)]
        return self._logits(torch.cat([part.unflatten(0, (self.time_steps, -1)) for part in pooled], 1))

    @torch.no_grad()
    def firing_rates(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean output θ · firing rate [B, ...] of each unit, by name."""
        rates: dict[str, list[Tensor]] = {}
        for part in self.parts(images):
            state = State(part)
            for index, site in enumerate(self.sites):
                state = self.advance(state, index, index + 1)
                if hasattr(site.module, "neuron"):
                    rates.setdefault(site.name, []).append(site.module.neuron.rate(state.x))
        return {name: torch.cat(parts) for name, parts in rates.items()}

    @torch.no_grad()
    def advance(self, state: State, start: int, stop: int) -> State:
        """Run the sites [start, stop): a state is images, or spikes + zero [T·B, ...] as a unit puts them out."""
        with torch.autocast(state.x.device.type, enabled=False):  # half precision has too few bits for the sums
            return run(self.sites[start:stop], state)

    @torch.no_grad()
    def mean_input(self, state: State, index: int) -> State:
        """Return the state in front of a site as firing rates times θ, x̄ [B, ...]: what an ANN's unit takes."""
        *before, neuron = self._neurons(index)
        # An open block's residual is what the unit before the last one put out.
        return State(neuron.rate(state.x), None if state.residual is None else before[-1].rate(state.residual))

    @torch.inference_mode()
    def finish(self, state: State, index: int) -> Tensor:
        """Return the logits [B, classes] for a state in front of a site."""
        end = len(self.sites)
        return self._logits(self.pool(self.mean_input(self.advance(state, index, end), end).x))

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Split images into those that go through the network at a time."""
        return images.split(self.chunk or self.fitting_chunk(images))

    def fitting_chunk(self, images: Tensor) -> int:
        """Return how many images go through the network at a time: on a CPU so few that caches hold their currents."""
        if images.device.type != "cpu":
            return len(images)
        first = self.body[0]
        values = self.time_steps * len(first.weight) * math.prod(images.shape[2:]) // math.prod(first.geometry.stride)
        return max(1, WORKING_SET // (values * (4 + first.neuron.dtype.itemsize)))

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, unit) in forward order; `unit.neuron.decode` makes s·θ of what a unit puts out."""
        for site in self.sites:
            if hasattr(site.module, "neuron"):
                yield site.name, site.module

    def _outputs(self, images: Tensor) -> Iterator[Tensor]:
        """Yield what the body puts out, part by part."""
        for part in self.parts(images):
            yield self.advance(State(part), 0, len(self.sites)).x

    def _logits(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)

    def _neurons(self, index: int) -> list[FusedNeuron]:
        return [site.module.neuron for site in self.sites[:index] if hasattr(site.module, "neuron")]


@torch.no_grad()
def deploy(snn: Network, integer: bool | None = None, chunk: int | None = None, compile: bool = True) -> Deployed:
    """Return a network for inference that fires the same spikes; later changes of `snn` do not reach it.

    Weights are quantized once, as integers; convolutions see spikes as integers; scale, bias, residual and neuron are one
    pass over the accumulators, which are exact. The spikes are those of `snn` in float64, while `snn` in float32
    rounds its currents and now and then lets a spike at the threshold fire a step early or late. Where hidden weights
    are float (resnet18, ImageNet's recipes) the accumulators are rounded too.

    Args:
        snn: a spiking network.
        integer: convolve bytes (on a CPU; on a GPU the float path is exact too); None: where the weights allow it.
        chunk: images at a time; by default what fits into the caches.
        compile: compile the neuron; without a compiler it is merely slower.

    Raises:
        ValueError: a network that does not spike, or hidden weights that are no small integers with `integer`.
    """
    if snn.neuron is None:
        raise ValueError("the network does not spike: deploy takes what to_spiking returns")
    if integer is None:
        integer = all(fits_bytes(unit.conv) for _, unit in list(snn.units())[1:])
    on_cpu = snn.head.weight.device.type == "cpu"
    return Deployed(snn, IntegerConv if integer and on_cpu else FloatConv, chunk, compile)


def fits_bytes(conv: nn.Module) -> bool:
    """Return whether the weights are integers within ±127 times a step."""
    quantizer = getattr(conv, "weight_quantizer", None)
    return isinstance(quantizer, APoTWeight) and quantizer.denominator <= LARGEST
