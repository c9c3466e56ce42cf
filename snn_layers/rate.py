"""Spikes forward, rates backward: a spiking network as a function that can be trained as a whole."""

import torch
from torch import Tensor, nn

from models import Network, Site, State, Unit, mean_over_time
from quant import quantize_activation


def rate_logits(snn: Network, images: Tensor) -> Tensor:
    """Return the spiking network's logits [B, classes], with the gradient of the ANN that its firing rates run through.

    Per unit, S its spike input, x̄ = mean_T S: o = the unit as ANN layer on x̄, ȳ = mean_T of its spikes,
    out = o + (ȳ - o).detach(). Each x̄ has the value of the spikes and the gradient of the rates in front of it, so a
    step costs one spiking forward pass without graph, one ANN forward and one ANN backward pass, whatever T is.

    Args:
        snn: a spiking network, in eval mode.
        images: [B, 3, H, W].

    Source: after rate-based backpropagation (Yu et al., NeurIPS 2024); here the rate function is the quantized
    activation, which is what the neuron computes where its input arrives evenly.
    """
    spikes = rates = State(images)
    for site in snn.sites():
        with torch.no_grad():
            spikes = site(spikes)
        rates = advance_rates(site, rates, spikes, snn.time_steps)
    return snn.head(snn.pool(rates.x))


def advance_rates(site: Site, rates: State, spikes: State, time_steps: int) -> State:
    """Advance the rates by one site: the values of `spikes`, which are behind it, with the gradient of the ANN layer.

    Args:
        rates: in front of the site, [B, ...].
        spikes: behind the site, [T·B, ...].
    """
    if not isinstance(site.module, Unit):
        return site(rates)
    rate = unit_rate(site.module, rates.x, rates.residual, mean_over_time(spikes.x, time_steps), time_steps)
    return State(rate, rates.x if site.opens_block else None)


def unit_rate(unit: Unit, x: Tensor, residual: Tensor | None, spike_rate: Tensor, time_steps: int) -> Tensor:
    """Return `spike_rate` [B, ...], ȳ, with the gradient of o, the unit as ANN layer: o + (ȳ - o).detach().

    Args:
        x, residual: mean spike input of the unit, x̄ [B, ...]; the residual where it joins one.
    """
    rate = quantize_activation(unit.current(x, residual), unit.activation.threshold.detach(), time_steps)
    return rate + (spike_rate - rate).detach()


class RateNetwork(nn.Module):
    """A spiking network for a training loop; BN statistics and thresholds stay, so it is always in eval mode."""

    def __init__(self, snn: Network):
        super().__init__()
        self.snn = snn.eval()

    def train(self, mode: bool = True) -> "RateNetwork":
        """Keep eval mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes], the mean over T."""
        return rate_logits(self.snn, images)
