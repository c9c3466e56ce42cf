"""Fast inference: `deploy` turns a spiking network into one that computes the same spikes without the layers' detours."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Network, Site, State, Unit, mean_over_time
from quant import APoTWeight, compiled

from .fused import fire, membrane_grid, neuron_constants, split
from .integer import LARGEST, FloatConv, IntegerConv
from .neuron import IFNeuron

Convolution = type[FloatConv] | type[IntegerConv]
WORKING_SET = 3 * 2**14  # pixels times steps whose currents a CPU's caches hold


def weight_integers(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (numerators, step) with quantized weight = step · numerators, as [C', C, k, k] and a float64 scalar.

    Weights that are not APoT-quantized are their own numerators; a linear layer is a 1x1 convolution.
    """
    quantizer = getattr(conv, "weight_quantizer", None)
    weight = conv.weight if quantizer is None else quantizer(conv.weight)
    step = torch.ones((), dtype=torch.float64, device=weight.device)
    weight = weight.detach().double()
    if isinstance(quantizer, APoTWeight):
        step = quantizer.alpha.detach().double() / quantizer.denominator
        weight = (weight / step).round()
    return (weight[..., None, None] if weight.dim() == 2 else weight), step


def normalization(bn: nn.Module, conv_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return gain and bias [C], float64, with bn(x + conv_bias) = gain · x + bias in eval mode."""
    gain = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
    mean = bn.running_mean.double() - (0 if conv_bias is None else conv_bias.detach().double())
    return gain, bn.bias.detach().double() - mean * gain


class FusedNeuron(nn.Module):
    """A neuron on accumulators; its spikes come as the next convolution takes them."""

    def __init__(self, neuron: IFNeuron, constants: Tensor, convolution: Convolution, fused: bool):
        super().__init__()
        self.register_buffer("constants", constants)
        self.time_steps, self.signed, self.delay, self.encodes = neuron.time_steps, neuron.signed, neuron.delay, neuron.encodes
        self.zero, self.dtype, self.threshold = convolution.zero, convolution.dtype, neuron.threshold.item()
        self.fused = fused

    def forward(self, accumulator: Tensor, second: Tensor | None) -> Tensor:
        """Map [T·B, C, H, W], or [B, C, H, W] if the neuron encodes, to spikes + zero [T·B, C, H, W]."""
        def rows(x: Tensor) -> Tensor:  # [T, B·H·W, C]
            return x.permute(0, 2, 3, 1).reshape(1 if self.encodes else self.time_steps, -1, x.shape[1])

        _, channels, height, width = accumulator.shape
        function = compiled(fire) if self.fused else fire
        spikes = function(rows(accumulator), None if second is None else rows(second), self.constants, self.time_steps,
                          self.signed, self.delay, self.zero, self.dtype)
        return spikes.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def decode(self, spikes: Tensor) -> Tensor:
        """Return s·θ for what `forward` put out, as `IFNeuron` does."""
        return (spikes.float() - self.zero) * self.threshold


class EncodingUnit(nn.Module):
    """The first unit: images are no integers, but their current is constant over time: once, in float64."""

    def __init__(self, unit: Unit, convolution: Convolution, fused: bool):
        super().__init__()
        weight, step = weight_integers(unit.conv)
        gain, bias = normalization(unit.bn, unit.conv.bias)
        self.register_buffer("weight", weight * (gain * step)[:, None, None, None])
        self.register_buffer("bias", bias)
        self.stride, self.padding = unit.conv.stride, unit.conv.padding
        neuron, one = unit.activation, torch.ones_like(bias)
        theta = neuron.threshold.item()
        constants = neuron_constants(one, theta * one, 0 * one, 0 * one, 2 * theta, neuron.time_steps)
        constants[2, 1] = 1  # the second input is the low part of the current
        self.grid = membrane_grid((neuron.time_steps + 1) * 4 * theta)
        self.neuron = FusedNeuron(neuron, constants, convolution, fused)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to spikes [T·B, C, H', W']."""
        current = F.conv2d(images.double(), self.weight, self.bias, self.stride, self.padding)
        # A current of -θ or less never fires, one of θ or more always: the limits change no spike.
        theta = self.neuron.threshold
        return self.neuron(*split(current.clamp_(-theta, 2 * theta), self.grid))


class SpikingUnit(nn.Module):
    """A hidden unit: convolution of integers, then the neuron with scale, bias and residual in it.

    Args:
        unit: of a spiking network.
        theta: threshold of the neurons in front of it.
        residual_theta: the same for its residual; None if it joins none.
    """

    def __init__(self, unit: Unit, theta: float, residual_theta: float | None, convolution: Convolution, fused: bool):
        super().__init__()
        weight, step = weight_integers(unit.conv)
        gain, bias = normalization(unit.bn, unit.conv.bias)
        scale = gain * step * theta
        # Comparisons need a positive scale: a negative one goes into the weights, and so does a zero.
        weight = weight * scale.sign()[:, None, None, None]
        scale = torch.where(scale == 0, 1, scale.abs())
        largest = weight.abs().sum((1, 2, 3)).max().item()
        factor = torch.zeros_like(scale)
        self.shortcut = None
        if residual_theta is not None and unit.shortcut is None:
            factor += residual_theta
            largest += (1 + convolution.zero) * (factor / scale).max().item()
            bias = bias - convolution.zero * factor
        elif residual_theta is not None:
            side, side_step = weight_integers(unit.shortcut.conv)
            side_gain, side_bias = normalization(unit.shortcut.bn, unit.shortcut.conv.bias)
            factor, bias = side_gain * side_step * residual_theta, bias + side_bias
            largest += (side.abs().sum((1, 2, 3)) * factor.abs() / scale).max().item()
            self.shortcut = convolution(side, unit.shortcut.conv.stride, unit.shortcut.conv.padding)
        self.linear = isinstance(unit.conv, nn.Linear)
        self.conv = convolution(weight, *((1, 1), (0, 0)) if self.linear else (unit.conv.stride, unit.conv.padding))
        threshold = unit.activation.threshold.detach().double().expand_as(scale)
        constants = neuron_constants(scale, threshold, bias, factor, largest, unit.activation.time_steps)
        self.neuron = FusedNeuron(unit.activation, constants, convolution, fused)

    def forward(self, spikes: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map spikes + zero [T·B, C, H, W] (linear: [T·B, C]) to spikes + zero."""
        if residual is not None and self.shortcut is not None:
            residual = self.shortcut(residual)
        if self.linear:
            return self.neuron(self.conv(spikes[:, :, None, None]), residual).flatten(1)
        return self.neuron(self.conv(spikes), residual)


class Deployed(nn.Module):
    """A spiking network for inference: images [B, 3, H, W] to logits [B, classes], the mean over T; see `deploy`."""

    def __init__(self, snn: Network, convolution: Convolution, chunk: int | None, fused: bool):
        super().__init__()
        self.time_steps, self.chunk, self.zero = snn.time_steps, chunk, convolution.zero
        self.sites: list[Site] = []
        thetas: list[float] = []
        for site in snn.sites():
            module = site.module
            if isinstance(module, Unit):
                theta = module.activation.threshold.item()
                if thetas:
                    module = SpikingUnit(module, thetas[-1], thetas[-2] if site.joins else None, convolution, fused)
                else:
                    module = EncodingUnit(module, convolution, fused)
                thetas.append(theta)
            self.sites.append(replace(site, module=module))
        self.body = nn.ModuleList(site.module for site in self.sites)
        self.pool, self.head = snn.pool, nn.Linear(snn.head.in_features, snn.head.out_features, device="meta")
        quantizer = getattr(snn.head, "weight_quantizer", nn.Identity())
        self.head.weight = nn.Parameter(quantizer(snn.head.weight).detach().clone())
        self.head.bias = nn.Parameter(snn.head.bias.detach().clone())
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]."""
        *_, last = self.firing_rates(images, every=False).values()
        return self.head(self.pool(last))

    @torch.no_grad()
    def firing_rates(self, images: Tensor, every: bool = True) -> dict[str, Tensor]:
        """Return the mean output θ · firing rate [B, ...] of the last unit, or of `every` unit, by name."""
        rates: dict[str, list[Tensor]] = {}
        *_, (last, _) = self.units()
        with torch.autocast(images.device.type, enabled=False):  # half precision has too few bits for the sums
            for part in images.split(self.chunk or self.fitting_chunk(images)):
                state = State(part)
                for site in self.sites:
                    state = site(state)
                    if site.name == last or (every and hasattr(site.module, "neuron")):
                        rate = mean_over_time(site.module.neuron.decode(state.x), self.time_steps)
                        rates.setdefault(site.name, []).append(rate)
        return {name: torch.cat(parts) for name, parts in rates.items()}

    def fitting_chunk(self, images: Tensor) -> int:
        """Return how many images go through the network at a time: on a CPU so few that caches hold their currents."""
        if images.device.type != "cpu":
            return len(images)
        return max(1, WORKING_SET // (self.time_steps * images[0, 0].numel()))

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, unit) in forward order; `unit.neuron.decode` makes s·θ of what a unit puts out."""
        for site in self.sites:
            if hasattr(site.module, "neuron"):
                yield site.name, site.module


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
