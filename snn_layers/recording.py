"""The spikes of a network, to look at them."""

import torch
from torch import Tensor

from models import Network

from .neuron import IFNeuron


@torch.no_grad()
def spikes(snn: Network, images: Tensor) -> dict[str, Tensor]:
    """Return {unit: spike train [T, B, ...] of -1, 0 and 1}, in forward order, for images [B, 3, H, W].

    In float32 a membrane that comes within rounding of its threshold may fire a step early or late; `snn.double()` with images in
    float64 gives the spikes of a deployed network.
    """
    found: dict[str, Tensor] = {}

    def recorded(name: str, neuron: IFNeuron, output: Tensor) -> None:
        found[name] = (output / neuron.threshold).round().unflatten(0, (neuron.time_steps, -1))

    hooks = [neuron.register_forward_hook(lambda neuron, _, output, name=name: recorded(name, neuron, output))
             for name, neuron in snn.units()]
    try:
        snn(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
