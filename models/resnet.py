"""Residual networks for 32x32 images."""

from torch import nn

from .unit import BasicBlock, Stack, conv_unit


def residual_network(stem: int, widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int) -> Stack:
    """Return stem unit, stages of basic blocks (strides 1, 2, 2), global average pooling, head; Kaiming fan_out."""
    layers, channels = [conv_unit(3, stem)], stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            layers.append(BasicBlock(channels, width, stride=2 if stage > 0 and index == 0 else 1))
            channels = width
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Stack(nn.Sequential(*layers), pool, nn.Linear(channels, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet_cifar(depth: int, num_classes: int) -> Stack:
    """ResNet-N, N = 6n + 2, of He et al. 2016 section 4.2, with 1x1 conv + BN shortcuts."""
    blocks = (depth - 2) // 6
    return residual_network(16, (16, 32, 64), (blocks, blocks, blocks), num_classes)


def resnet18(num_classes: int) -> Stack:
    """The wide residual network that Fast-SNN calls ResNet-18: 3, 3 and 2 blocks of 128, 256 and 512 channels."""
    return residual_network(64, (128, 256, 512), (3, 3, 2), num_classes)
