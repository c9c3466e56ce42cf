"""Calibration without training: each channel's bias is shifted until its mean firing rate is that of the ANN."""

from copy import deepcopy

import torch
from torch import Tensor, fx, nn

from models import INPUT, NORMS, WEIGHTED, Network, Part, Values
from models.graph.affine import POOLS
from models.graph.calls import call_name
from quant import quantized_once

from .convert import own_parameters_
from .deployment.deploy import deploy
from .deployment.normal_form import SAME
from .stored import advance, spikes_as_bytes, unpacked

CHUNK = 64  # images at a time, so that T·64 images of the widest layer stay small in memory


@torch.no_grad()
def calibrate_rates_(snn: Network, ann: Network, images: Tensor, rounds: int = 3) -> Network:
    """Shift the biases of a spiking network, in place, towards its ANN's mean activations; no labels, no gradients.

    For each hidden unit in forward order, `rounds` times:  β_c += mean over images and positions of (a_c - θ·rate_c), where a is
    the ANN's activation. A shift of the current by δ moves the rate by δ where a neuron neither rests nor saturates, and by less
    elsewhere: hence more than one round. Later units see the earlier ones already shifted. β is the bias of a batch
    normalisation or layer before the neuron that only this unit reads; without one, the neuron gets a bias of its own.

    Args:
        snn: the network; it gets parameters of its own, the ANN stays as it is.
        ann: the quantized network that it came from.
        images: [N, 3, H, W], some hundred training images.

    Source: after the bias shift of Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural
    networks calibration", ICML 2021, section 4.1; the rates are those of the neurons here.
    """
    own_parameters_(snn)
    ann = deepcopy(ann).eval()
    deployed = deploy(snn, compile=False)
    spikes: list[Values] = [{INPUT: chunk} for chunk in images.split(CHUNK)]
    activations = list(spikes)
    with quantized_once(ann):
        for unit in snn.graph.units:
            activations = [advance(ann, unit, values) for values in activations]
            for _ in range(0 if unit.encodes else rounds):
                shift = 0
                for before, target in zip(spikes, activations, strict=True):
                    _, fired = deployed.step(unit, before)
                    error = unpacked(target[unit.name]) - deployed.neuron(unit.name).rate(fired)
                    shift = shift + error.transpose(0, 1).flatten(1).mean(1) * len(error) / len(images)
                shift_(snn, unit, shift, error.dim())
                deployed.update_(snn, unit)
            spikes = [spikes_as_bytes(deployed.step(unit, values)[0], deployed.index) for values in spikes]
    return snn


def shift_(snn: Network, unit: Part, shift: Tensor, dimensions: int) -> None:
    """Add `shift` [C], in place, to the bias of a unit's current [B, C, ...], which has so many dimensions."""
    neuron, path = snn.activation(unit.name), bias_of(snn, unit, unit.result)
    layer = neuron if path is None or (isinstance(snn.layer(path), nn.Linear) and dimensions != 2) else snn.layer(path)
    if layer.bias is not None and len(layer.bias) != len(shift):
        layer = neuron  # one channel that is added to all
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(shift))
    layer.bias += shift


def bias_of(snn: Network, unit: Part, node: fx.Node) -> str | None:
    """Return the path of the layer whose bias is added to a node, channel by channel, and to nothing else; None without one."""
    if node not in unit.nodes or len(node.users) > 1:
        return None
    layer = snn.layer(node.target) if node.op == "call_module" else None
    if isinstance(layer, (*NORMS, *WEIGHTED)):
        return node.target if layer.bias is not None and snn.graph.calls(node.target) == 1 else None
    if isinstance(layer, (*SAME, *POOLS)):
        return bias_of(snn, unit, node.args[0])
    if call_name(node) == "add" and not node.kwargs:
        inputs = [value for value in node.args if isinstance(value, fx.Node)]
        return next((path for path in (bias_of(snn, unit, value) for value in inputs) if path is not None), None)
    return None
