"""The parts of the networks by name: a unit, a block that joins two units with a residual, and their stack."""

from torch import Tensor, nn


class Unit(nn.Module):
    """activation(bn(conv(x)) + shortcut(residual)); the residual term only where one is given.

    Args:
        conv: Conv2d, or Linear for a hidden layer of the classifier.
        bn: BatchNorm2d or BatchNorm1d over the output channels of `conv`.
        shortcut: conv + BN for a residual of another shape; None passes the residual through.
    """

    def __init__(self, conv: nn.Module, bn: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.shortcut = shortcut
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activations [B, C, H, W] (Linear: [B, C])."""
        current = self.bn(self.conv(x))
        if residual is not None:
            current = current + (residual if self.shortcut is None else self.shortcut(residual))
        return self.activation(current)


class Shortcut(nn.Module):
    """1x1 conv + BN for a residual whose shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W] to [B, out_channels, H/stride, W/stride]."""
        return self.bn(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 units; the block's input is added to the current of the second."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        changes_shape = stride != 1 or in_channels != channels
        shortcut = Shortcut(in_channels, channels, stride) if changes_shape else None
        self.part1 = conv_unit(in_channels, channels, stride=stride)
        self.part2 = conv_unit(channels, channels, shortcut=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W] to [B, channels, H/stride, W/stride]."""
        return self.part2(self.part1(x), residual=x)


def conv_unit(in_channels: int, channels: int, kernel: int = 3, stride: int = 1, padding: int = 1, bias: bool = False,
              shortcut: nn.Module | None = None) -> Unit:
    """Return a convolutional unit."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=bias)
    return Unit(conv, nn.BatchNorm2d(channels), shortcut)


def linear_unit(in_features: int, features: int) -> Unit:
    """Return a hidden unit of the classifier."""
    return Unit(nn.Linear(in_features, features), nn.BatchNorm1d(features))


class Stack(nn.Module):
    """head(pool(body(images)))."""

    def __init__(self, body: nn.Sequential, pool: nn.Module, head: nn.Linear):
        super().__init__()
        self.body = body
        self.pool = pool
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]."""
        return self.head(self.pool(self.body(images)))
