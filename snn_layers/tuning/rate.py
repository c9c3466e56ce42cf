"""Spikes forward, rates backward: a spiking network as a function that can be trained as a whole."""

from functools import partial

import torch
from torch import Tensor, nn

from models import INPUT, Network, Part, Values, live, mean_over_time
from quant import replace_activation, shifted

from ..convert import own_parameters_
from ..deployment.deploy import deploy
from ..step_norm import refuse_steps


def rate_logits(snn: Network, images: Tensor, spike_rates: dict[str, Tensor]) -> Tensor:
    """Return the spiking network's logits [B, classes], with the gradient of its ANN at the firing rates.

    Per unit, S its spike input, x̄ = mean_T S: o = the unit as ANN layer on x̄, ȳ = mean_T of its spikes,
    out = o + (ȳ - o).detach(). Each x̄ has the value of the spikes and the gradient of the rates before it. So a step
    costs one spiking forward pass without a graph, one ANN forward and one ANN backward pass, whatever T is.

    Args:
        snn: a spiking network, in eval mode.
        images: [B, 3, H, W].
        spike_rates: ȳ [B, ...] of each unit on these images, by its name.

    Source: after rate-based backpropagation (Yu et al., NeurIPS 2024); here the rate function is the quantized
    activation, which the neuron computes where its input arrives evenly.
    """
    values = {INPUT: images}
    for unit in snn.graph.units:
        rate, shared = unit_rate(snn, unit, values, spike_rates[unit.name])
        values = live({**values, **shared, unit.name: rate}, unit)
    return snn.run(snn.graph.readout, values, 1)[0]


@torch.no_grad()
def firing_rates(snn: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the mean output ȳ = θ · firing rate [B, ...] of each unit, by its name, from the plain layers."""
    rates, values = {}, {INPUT: images}
    for unit in snn.graph.units:
        values = snn.advance(unit, values)
        rates[unit.name] = mean_over_time(values[unit.name], snn.time_steps)
    return rates


def unit_rate(snn: Network, unit: Part, means: Values, spike_rate: Tensor) -> tuple[Tensor, Values]:
    """Return ȳ [B, ...] with the gradient of o, the unit as ANN layer: o + (ȳ - o).detach(); and the values that it shares.

    Args:
        means: the values that the unit reads, as means over time [B, ...].
    """
    current, shared = snn.run(unit, means, 1)
    neuron = snn.activation(unit.name)
    return replace_activation(shifted(current, neuron.bias), neuron.threshold.detach(), spike_rate), shared


class RateNetwork(nn.Module):
    """A spiking network for a training loop. BN statistics and thresholds stay, so it is always in eval mode.

    The network is changed in place: it gets parameters of its own.

    Args:
        snn: the network that is trained.
        deployed: its deployment, made anew in each step, fires the spikes; otherwise the plain layers do.
        compile: see `deploy`.

    Raises:
        ValueError: a network with BN of each time step.
    """

    def __init__(self, snn: Network, deployed: bool = True, compile: bool = True):
        super().__init__()
        refuse_steps(snn)
        own_parameters_(snn)
        self.snn, self.deployed, self.compile = snn.eval(), deployed, compile
        for _, neuron in snn.units():
            neuron.threshold.requires_grad_(False)

    def train(self, mode: bool = True) -> "RateNetwork":
        """Keep eval mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes], the mean over T."""
        fires = deploy(self.snn, compile=self.compile).firing_rates if self.deployed else partial(firing_rates, self.snn)
        return rate_logits(self.snn, images, fires(images))
