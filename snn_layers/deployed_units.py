"""The units of a deployed network: convolutions of integers, and the fused neuron behind them."""

import torch
from torch import Tensor, nn

from models import Unit
from quant import APoTWeight, compiled

from .functional import RETRACTION
from .fused import fire, fire_steps, neuron_constants
from .integer import FloatConv, Geometry, IntegerConv
from .neuron import IFNeuron

Convolution = type[FloatConv] | type[IntegerConv]


def weight_integers(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (numerators, step) with quantized weight = step · numerators, as [C', C, k, k] and a float64 scalar.

    Weights that are not APoT-quantized are their own numerators; a linear layer is a 1x1 convolution.
    """
    quantizer = getattr(conv, "weight_quantizer", nn.Identity())
    step = torch.ones((), dtype=torch.float64, device=conv.weight.device)
    if isinstance(quantizer, APoTWeight):
        step = quantizer.alpha.detach().double() / quantizer.denominator
        weight = (quantizer(conv.weight).detach().double() / step).round()
    else:
        weight = quantizer(conv.weight.detach().double())  # 8-bit weights: in float32 their product with the step is rounded
    return (weight[..., None, None] if weight.dim() == 2 else weight), step


def normalization(bn: nn.Module, conv_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return gain and bias, float64, with bn(x + conv_bias) = gain · x + bias in eval mode: [C], of each time step [T, C]."""
    gain = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
    mean = bn.running_mean.double() - (0 if conv_bias is None else conv_bias.detach().double())
    return gain, bn.bias.detach().double() - mean * gain


def float64_constants(neuron: IFNeuron, channels: int) -> Tensor:
    """Return the constants of `fire` [4, 2, C] for currents in float64, which one number holds whole, with bias and factor 0."""
    constants = neuron.threshold.new_zeros(4, 2, channels, dtype=torch.float64)
    constants[0, 0], constants[3, 0] = neuron.threshold.detach(), RETRACTION
    return constants


class FusedNeuron(nn.Module):
    """A neuron on accumulators; its spikes come as the next convolution takes them.

    Args:
        constants: see `fire`.
        currents: see `fire_steps`; None where all time steps share scale and bias.
    """

    def __init__(self, neuron: IFNeuron, constants: Tensor, convolution: Convolution, fused: bool, currents: Tensor | None = None):
        super().__init__()
        self.register_buffer("constants", constants)
        self.register_buffer("currents", currents)
        self.time_steps, self.signed, self.delay, self.encodes = neuron.time_steps, neuron.signed, neuron.delay, neuron.encodes
        self.zero, self.dtype, self.threshold = convolution.zero, convolution.dtype, neuron.threshold.item()
        self.fused, self.start = fused, neuron.start

    def forward(self, accumulator: Tensor, second: Tensor | None) -> Tensor:
        """Map [T·B, C, H, W], or [B, C, H, W] if the neuron encodes, to spikes + zero [T·B, C, H, W]."""
        def rows(x: Tensor) -> Tensor:  # [T, B·H·W, C]
            return x.permute(0, 2, 3, 1).reshape(1 if self.encodes else self.time_steps, -1, x.shape[1])

        _, channels, height, width = accumulator.shape
        function, constants = (fire, (self.constants,)) if self.currents is None else (fire_steps, (self.currents, self.constants))
        spikes = (compiled(function) if self.fused else function)(
            rows(accumulator), None if second is None else rows(second), *constants, self.time_steps, self.signed, self.delay,
            self.zero, self.dtype, self.start)
        return spikes.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def decode(self, spikes: Tensor) -> Tensor:
        """Return s·θ for what `forward` put out, as `IFNeuron` does."""
        return (spikes.float() - self.zero) * self.threshold

    def rate(self, spikes: Tensor) -> Tensor:
        """Return the mean output θ · firing rate [B, C, H, W] for what `forward` put out; counts are added as they come."""
        if not spikes.is_floating_point() and (1 + self.zero) * self.time_steps > torch.iinfo(spikes.dtype).max:
            spikes = spikes.short()
        total, *rest = spikes.unflatten(0, (self.time_steps, -1))
        for later in rest:
            total = total + later
        return (total.float() - self.zero * self.time_steps) * (self.threshold / self.time_steps)

    def rates(self, spikes: Tensor) -> Tensor:
        """Return `rate` over the first T' = 1..T steps, [T, B, ...]; the last one is that of all steps, bit for bit."""
        counts = spikes.unflatten(0, (self.time_steps, -1)).cumsum(0, dtype=torch.float32)  # of integers: exact
        steps = torch.arange(1, self.time_steps + 1, dtype=torch.float64, device=spikes.device)
        steps = steps.view(-1, *[1] * (counts.dim() - 1))
        return (counts - (self.zero * steps).float()) * (self.threshold / steps).float()


class EncodingUnit(nn.Module):
    """The first unit: images are no integers, but their current is constant over time: once, in float64."""

    def __init__(self, unit: Unit, convolution: Convolution, fused: bool):
        super().__init__()
        weight, step = weight_integers(unit.conv)
        gain, bias = normalization(unit.bn, unit.conv.bias)
        self.register_buffer("weight", weight * (gain * step)[:, None, None, None])
        self.register_buffer("bias", bias)
        self.geometry = Geometry.of(unit.conv)
        self.neuron = FusedNeuron(unit.activation, float64_constants(unit.activation, len(bias)), convolution, fused)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to spikes [T·B, C, H', W'].

        Raises:
            ValueError: no floating-point numbers (pixels must be normalised first), no image, NaN or infinity.
        """
        if not images.is_floating_point() or images.dim() != 4 or len(images) == 0:
            raise ValueError(f"images are {images.dtype} of shape {list(images.shape)}: normalised floating-point numbers "
                             "[B, 3, H, W] are needed")
        if not torch.isfinite(images).all():
            raise ValueError("the images hold NaN or infinity, in which no neuron would fire")
        return self.neuron(self.geometry.convolve(images.double(), self.weight, self.bias), None)


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
        scale, side_sum = gain * step * theta, 0.0
        factor = torch.zeros_like(scale)
        self.shortcut = None
        if residual_theta is not None and unit.shortcut is None:
            factor += residual_theta
            side_sum = 1 + convolution.zero
            bias = bias - convolution.zero * factor
        elif residual_theta is not None:
            side, side_step = weight_integers(unit.shortcut.conv)
            side_gain, side_bias = normalization(unit.shortcut.bn, unit.shortcut.conv.bias)
            factor, bias = side_gain * side_step * residual_theta, bias + side_bias
            side_sum = side.abs().sum((1, 2, 3))
            self.shortcut = convolution(side, Geometry.of(unit.shortcut.conv))
        neuron, currents = unit.activation, None
        if max(scale.dim(), bias.dim()) == 2:
            channels, steps = len(weight), neuron.time_steps
            currents = torch.stack([values.view(-1, channels)[:steps].expand(steps, -1) for values in (scale, bias, factor)])
            constants = float64_constants(neuron, channels)
        else:
            # Comparisons need a positive scale: a negative one goes into the weights, and so does a zero.
            weight = weight * scale.sign()[:, None, None, None]
            scale = torch.where(scale == 0, 1, scale.abs())
            largest = weight.abs().sum((1, 2, 3)) + side_sum * factor.abs() / scale
            threshold = neuron.threshold.detach().double().expand_as(scale)
            constants = neuron_constants(scale, threshold, bias, factor, largest, neuron.time_steps)
        self.linear = isinstance(unit.conv, nn.Linear)
        self.conv = convolution(weight, Geometry.of(unit.conv))
        self.neuron = FusedNeuron(neuron, constants, convolution, fused, currents)

    def forward(self, spikes: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map spikes + zero [T·B, C, H, W] (linear: [T·B, C]) to spikes + zero."""
        if residual is not None and self.shortcut is not None:
            residual = self.shortcut(residual)
        if self.linear:
            return self.neuron(self.conv(spikes[:, :, None, None]), residual).flatten(1)
        return self.neuron(self.conv(spikes), residual)
