"""Calibration without training: each channel's bias is shifted until its mean firing rate is that of the ANN."""

import torch
from torch import Tensor

from models import Network, State, Unit, mean_over_time
from quant import quantized_once

from .finetune import own_parameters_


@torch.no_grad()
def calibrate_rates_(snn: Network, ann: Network, images: Tensor, rounds: int = 3) -> Network:
    """Shift the BN biases of a spiking network, in place, towards its ANN's mean activations; no labels, no gradients.

    Per hidden unit in forward order, `rounds` times:  β_c += mean over images and positions of (a_c - θ·rate_c), a the
    ANN's activation. A shift of the current by δ moves the rate by δ where a neuron neither rests nor saturates, by less
    elsewhere, hence more than one round. Later units see the earlier ones already shifted.

    Args:
        snn: the network; it gets parameters of its own, the ANN stays as it is.
        ann: the quantized network that it came from.
        images: [N, 3, H, W], some hundred training images.

    Source: after the bias shift of Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural
    networks calibration", ICML 2021, section 4.1; the rates are those of the neurons here.
    """
    own_parameters_(snn)
    spikes = activations = State(images)
    with quantized_once(snn), quantized_once(ann):
        for index, (site, ann_site) in enumerate(zip(snn.sites(), ann.sites(), strict=True)):
            activations = ann_site(activations)
            if isinstance(site.module, Unit) and index > 0:
                for _ in range(rounds):
                    error = activations.x - mean_over_time(site(spikes).x, snn.time_steps)
                    site.module.bn.bias += error.transpose(0, 1).flatten(1).mean(1)
            spikes = site(spikes)
    return snn
