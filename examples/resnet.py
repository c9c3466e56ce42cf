"""A small residual network for 32x32 images in plain PyTorch: what `make demo` trains, quantizes and converts.

Use: `python main.py --arch examples/resnet.py:resnet14 --bit 32`.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the size changes."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, width, H / stride, W / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution, six blocks, a mean and a linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2),
                                    Block(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, classes]."""
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(x.mean((2, 3)))


def resnet14(num_classes: int) -> ResNet:
    """Return the network."""
    return ResNet(num_classes)
