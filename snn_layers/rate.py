"""Spikes forward, rates backward: a spiking network as a function that can be trained as a whole."""

from functools import partial

import torch
from torch import Tensor, nn

from models import Network, State, Unit, mean_over_time
from quant import replace_activation

from .deploy import deploy
from .step_norm import refuse_steps


def rate_logits(snn: Network, images: Tensor, spike_rates: dict[str, Tensor]) -> Tensor:
    """Return the spiking network's logits [B, classes], with the gradient of the ANN that its firing rates run through.

    Per unit, S its spike input, x̄ = mean_T S: o = the unit as ANN layer on x̄, ȳ = mean_T of its spikes,
    out = o + (ȳ - o).detach(). Each x̄ has the value of the spikes and the gradient of the rates in front of it, so a
    step costs one spiking forward pass without graph, one ANN forward and one ANN backward pass, whatever T is.

    Args:
        snn: a spiking network, in eval mode.
        images: [B, 3, H, W].
        spike_rates: ȳ [B, ...] of each unit on these images, by its site's name.

    Source: after rate-based backpropagation (Yu et al., NeurIPS 2024); here the rate function is the quantized
    activation, which is what the neuron computes where its input arrives evenly.
    """
    state = State(images)
    for site in snn.sites():
        if isinstance(site.module, Unit):
            rate = unit_rate(site.module, state.x, state.residual if site.joins else None, spike_rates[site.name])
            state = State(rate, state.x if site.opens_block else None)
        else:
            state = site(state)
    return snn.head(snn.pool(state.x))


@torch.no_grad()
def firing_rates(snn: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the mean output ȳ = θ · firing rate [B, ...] of each unit, by its site's name, from the plain layers."""
    rates, state = {}, State(images)
    for site in snn.sites():
        state = site(state)
        if isinstance(site.module, Unit):
            rates[site.name] = mean_over_time(state.x, snn.time_steps)
    return rates


def unit_rate(unit: Unit, x: Tensor, residual: Tensor | None, spike_rate: Tensor) -> Tensor:
    """Return `spike_rate` [B, ...], ȳ, with the gradient of o, the unit as ANN layer: o + (ȳ - o).detach().

    Args:
        x, residual: mean spike input of the unit, x̄ [B, ...]; the residual where it joins one.
    """
    return replace_activation(unit.current(x, residual), unit.activation.threshold.item(), spike_rate)


class RateNetwork(nn.Module):
    """A spiking network for a training loop; BN statistics and thresholds stay, so it is always in eval mode.

    Args:
        snn: the network that is trained.
        deployed: let its deployment, made anew in each step, fire the spikes; otherwise the plain layers do.
        compile: see `deploy`.

    Raises:
        ValueError: a network with BN of each time step.
    """

    def __init__(self, snn: Network, deployed: bool = True, compile: bool = True):
        super().__init__()
        refuse_steps(snn)
        self.snn, self.deployed, self.compile = snn.eval(), deployed, compile
        for _, unit in snn.units():
            unit.activation.threshold.requires_grad_(False)

    def train(self, mode: bool = True) -> "RateNetwork":
        """Keep eval mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes], the mean over T."""
        fires = deploy(self.snn, compile=self.compile).firing_rates if self.deployed else partial(firing_rates, self.snn)
        return rate_logits(self.snn, images, fires(images))
