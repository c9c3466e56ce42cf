"""Calibration without training: each channel's bias is shifted until its mean firing rate is that of the ANN."""

from copy import deepcopy

import torch
from torch import Tensor

from models import Network, State, Unit
from quant import quantized_once, time_steps

from .convert import own_parameters_
from .deploy import deploy
from .states import Packed, advance, spikes_as_bytes, unpacked

CHUNK = 64  # images at a time: T·64 images of the widest layer stay small in memory


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
    ann = deepcopy(ann).eval()
    deployed, ann_sites = deploy(snn, compile=False), ann.sites()
    spikes = [State(chunk) for chunk in images.split(CHUNK)]
    activations: list[State | Packed] = list(spikes)
    with quantized_once(ann):
        for index, site in enumerate(snn.sites()):
            activations = [advance(state, ann_sites, index, index + 1, time_steps(ann.bit)) for state in activations]
            for _ in range(rounds if isinstance(site.module, Unit) and index > 0 else 0):
                shift = torch.zeros_like(site.module.bn.bias)
                for before, target in zip(spikes, activations, strict=True):
                    fired = deployed.advance(before, index, index + 1)
                    error = unpacked(target).x - deployed.sites[index].module.neuron.rate(fired.x)
                    shift += error.transpose(0, 1).flatten(1).mean(1) * len(error) / len(images)
                site.module.bn.bias += shift
                deployed.update_(index, site.module)
            spikes = [spikes_as_bytes(deployed.advance(state, index, index + 1)) for state in spikes]
    return snn
