"""A network of five units with a stride, a shortcut and an identity, for runs of scripts that only need some network."""

from torch import nn

from models import BasicBlock, Stack
from models.unit import conv_unit


def network(num_classes: int) -> nn.Module:
    """Return it in float."""
    body = nn.Sequential(conv_unit(3, 16, stride=2), BasicBlock(16, 32, 2), BasicBlock(32, 32, 1))
    return Stack(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(32, num_classes))
