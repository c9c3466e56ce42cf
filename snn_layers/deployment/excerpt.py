"""A part of a network as it is, for inference in one number type."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from models import Network, Part, tree

from .terms import normalization


class Excerpt(nn.Module):
    """A part of a network in eval mode, in one number type, its weights quantized once.

    A batch normalisation is folded into the layer before it if nothing else reads that layer.
    """

    def __init__(self, network: Network, part: Part, dtype: torch.dtype):
        super().__init__()
        self.part = part
        layers = {path: baked(network.layer(path), dtype) for path in part.modules()}
        for norm, path in network.graph.norms.items():
            if norm in layers and path in layers and fold_(layers[path], layers[norm]):
                layers[norm] = nn.Identity()
        for path in (node.target for node in part.constants if node.op == "get_attr"):
            value = network.tensor(path).detach().clone()
            layers[path] = value.to(dtype) if value.is_floating_point() else value
        self.root = tree(layers)

    def forward(self, time_steps: int, *inputs: Any) -> tuple:
        """Call the part's function."""
        return self.part.function(self.root, time_steps, *inputs)


def fold_(layer: nn.Module, norm: nn.Module) -> bool:
    """Fold a batch normalisation into the convolution that it reads, in place; return whether that is one.

    Not into a linear layer: of tokens [B, L, C] it has the last axis as its channels, the normalisation axis 1.
    """
    mean = norm.running_mean
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or mean is None or mean.dim() > 1:
        return False
    gain, bias = normalization(norm)
    layer.bias = nn.Parameter((bias if layer.bias is None else bias + layer.bias * gain).to(layer.weight.dtype), False)
    layer.weight = nn.Parameter(layer.weight * gain.to(layer.weight.dtype).view(-1, *[1] * (layer.weight.dim() - 1)), False)
    return True


def baked(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a layer in eval mode, with tensors of its own and its weight quantized once."""
    quantizer = getattr(layer, "weight_quantizer", None)
    copy = deepcopy(layer.to_float() if quantizer is not None else layer).to(dtype).eval()
    if quantizer is not None:
        copy.weight = nn.Parameter(quantizer(layer.weight.detach().double()).to(dtype), False)
    return copy


def movers(snn: Network, unit: Part) -> nn.Module:
    """Return the layers of a unit that move spikes, without those that learn."""
    return tree({path: snn.layer(path) for path in unit.modules() if not snn.layer(path).state_dict()})
