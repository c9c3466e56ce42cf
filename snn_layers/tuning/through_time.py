"""Tuning through time: a spiking network, unrolled over its steps, in a training loop."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import models
from models import Network
from quant import swap_

from ..calibrate import CHUNK
from ..convert import own_parameters_
from ..neuron import IFNeuron
from ..step_norm import StepNorm, give_steps_, norm_steps
from .surrogate import SURROGATES, fire_through_time

NORMS = ("step", "shared", "frozen")


class TimeNeuron(IFNeuron):
    """An IF neuron that has a gradient in training mode; in eval mode it is the IF neuron."""

    surrogate = "rectangle"

    @classmethod
    def from_neuron(cls, neuron: IFNeuron, surrogate: str) -> "TimeNeuron":
        """Return the trainable neuron that shares the threshold of `neuron`."""
        new = cls(neuron.threshold, neuron.time_steps, neuron.kind, neuron.delay, neuron.encodes, neuron.start, neuron.bias)
        new.surrogate = surrogate
        return new.train(neuron.training)

    def neuron(self) -> IFNeuron:
        """Return the IF neuron that shares the threshold."""
        how = (self.time_steps, self.kind, self.delay, self.encodes, self.start)
        return IFNeuron(self.threshold, *how, self.bias).train(self.training)

    def forward(self, current: Tensor) -> Tensor:
        """Map current [T·B, ...], or [B, ...] if the neuron encodes, to s·θ [T·B, ...]; half precision sums in float32."""
        if not self.training:
            return super().forward(current)
        if current.dtype in (torch.float16, torch.bfloat16):
            current = current.float()
        current, threshold = self.unfolded(current), self.threshold.detach().to(current.dtype)
        spikes = fire_through_time(current, threshold, self.kind.signed, self.delay, self.start, self.surrogate)
        return (spikes * threshold).flatten(0, 1)


@dataclass(frozen=True)
class TimeConfig:
    """How a network trains through time.

    Attributes:
        norm: "step": BN gets statistics, scale and shift of each time step; "shared": one BN for all steps learns the statistics
            of the spikes; "frozen": BN keeps its statistics. A network that has BN of each step keeps it.
        surrogate: see `surrogate_slope`.
    """

    norm: str = "step"
    surrogate: str = "rectangle"


class ThroughTime(nn.Module):
    """A spiking network for a training loop, unrolled over its steps; thresholds stay.

    The network is changed in place: it gets parameters of its own, trainable neurons and, as the config asks, BN of each
    step. `finished` puts its own neurons back.

    Args:
        snn: the network that is trained.

    Raises:
        ValueError: an unknown norm or surrogate, BN that cannot learn the statistics of the spikes, or BN of other steps.
    """

    def __init__(self, snn: Network, config: TimeConfig | None = None):
        super().__init__()
        config = config or TimeConfig()
        for value, known in ((config.norm, NORMS), (config.surrogate, SURROGATES)):
            if value not in known:
                raise ValueError(f"unknown {value!r}: choose {', '.join(known)}")
        self.snn, self.frozen = snn, config.norm == "frozen"
        if any(neuron.kind.signed is None for _, neuron in snn.units()):
            raise ValueError(f"{snn.neuron} neurons have no surrogate: tuning through time takes signed and unsigned ones")
        if (own := norm_steps(snn)) not in (None, snn.time_steps):
            raise ValueError(f"the network has BN of {own} time steps and runs {snn.time_steps}: convert it with all its steps")
        if not self.frozen:
            refuse_norms(snn)
        own_parameters_(snn)
        swap_(snn, lambda module: TimeNeuron.from_neuron(module, config.surrogate) if isinstance(module, IFNeuron) else None)
        for module in snn.modules():
            if isinstance(module, TimeNeuron):
                module.threshold.requires_grad_(False)
        if config.norm == "step":
            give_steps_(snn, dict.fromkeys(spiking_norms(snn), snn.time_steps))
        for norm in _norms(snn):
            if isinstance(norm, StepNorm):
                norm.time_steps = snn.time_steps

    def train(self, mode: bool = True) -> "ThroughTime":
        """Set the mode; frozen BN stays in eval mode."""
        super().train(mode)
        for norm in _norms(self.snn) if self.frozen else ():
            norm.eval()
        return self

    @torch.no_grad()
    def settle_(self, images: Tensor) -> None:
        """Give BN the statistics of the spikes on images [N, 3, H, W], and a scale and shift that keep its output.

            γ' = γ · √(σ'² + ε) / √(σ² + ε),  β' = β + γ · (μ' - μ) / √(σ² + ε)

        In eval mode the network computes the same as before. Without this, the first batch in training mode would be normalised to
        the ANN's means, while the means of a spiking network differ from step to step.
        """
        sums: dict[nn.Module, Tensor] = {}

        def look(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            steps = norm.time_steps if isinstance(norm, StepNorm) else 1
            x = inputs[0].unflatten(0, (steps, -1)).transpose(1, 2).flatten(2).double()  # [T, C, B·H·W]
            found = torch.stack([torch.full_like(x[..., 0], x.shape[2]), x.sum(2), x.square().sum(2)])
            sums[norm] = sums.get(norm, 0) + found

        hooks = [norm.register_forward_pre_hook(look) for norm in _norms(self.snn)]
        was_training = self.training
        self.eval()
        for chunk in () if self.frozen else images.split(CHUNK):
            self(chunk)
        self.train(was_training)
        for hook in hooks:
            hook.remove()
        for norm, (count, total, squares) in sums.items():
            rows = (values.view(-1, values.shape[-1])[:len(count)] for values in (norm.running_mean, norm.running_var,
                                                                                norm.weight, norm.bias))
            (old_mean, old_var, scale, shift), mean = rows, total / count
            var = (squares / count - mean.square()).clamp(min=0)
            gain = scale / (old_var + norm.eps).sqrt()
            shift += (gain * (mean - old_mean)).to(shift.dtype)
            scale.copy_(gain * (var + norm.eps).sqrt())
            old_mean.copy_(mean)
            old_var.copy_(var)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes], the mean over T."""
        return self.snn(images)

    def finished(self) -> Network:
        """Return the network, in eval mode, with plain IF neurons."""
        swap_(self.snn, lambda module: module.neuron() if isinstance(module, TimeNeuron) else None)
        return self.snn.eval()


def refuse_norms(snn: Network) -> None:
    """Raise ValueError if BN has no scale and shift, or no momentum, with which it learns the statistics of the spikes."""
    for name, norm in snn.named_modules():
        if isinstance(norm, models.NORMS) and (norm.weight is None or norm.momentum is None):
            raise ValueError(f"{name} has no scale and shift, or no momentum, to learn time steps with: pass --norm frozen")


def spiking_norms(snn: Network) -> list[nn.Module]:
    """Return the BN modules without steps of their own that only spikes reach and that a neuron follows."""
    folded: dict[str, bool] = {}
    for node in (node for part in snn.graph.parts for node in part.nodes if node.op == "call_module"):
        folded[node.target] = folded.get(node.target, True) and snn.graph.flow.folded(node)
    return [snn.layer(path) for path, all_folded in folded.items() if all_folded and isinstance(snn.layer(path), models.NORMS)]


def _norms(snn: Network) -> list[nn.Module]:
    return [module for module in snn.modules() if isinstance(module, (*models.NORMS, StepNorm))]
