"""A small VGG with max-pooling for 32x32 images: an example of a network from your own file.

Use: `python main.py --arch examples/vgg.py:vgg --bit 32`.
"""

from torch import nn


def vgg(num_classes: int) -> nn.Sequential:
    """Return the network: three times two convolutions and a pooling, one more convolution, one linear layer."""
    layers, channels = [], 3
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0, 256, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, num_classes))
