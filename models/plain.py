"""Plain networks without pooling: AlexNet and VGG for 32x32 and for 224x224 images."""

from itertools import pairwise

from torch import nn

from .unit import Stack, conv_unit, linear_unit

# A convolution is channels, or (channels, stride), or (channels, stride, kernel, padding).
Conv = int | tuple[int, ...]


def plain_network(convs: list[Conv], linears: list[int], num_classes: int) -> Stack:
    """Return conv units, then linear units of the given widths (the first one is the flattened input), then the head."""
    layers, channels = [], 3
    for conv in convs:
        width, stride, kernel, padding = (conv, 1, 3, 1) if isinstance(conv, int) else (*conv, *(1, 3, 1)[len(conv) - 1:])
        layers.append(conv_unit(channels, width, kernel, stride, padding, bias=True))
        channels = width
    layers.append(nn.Flatten())
    layers += [linear_unit(a, b) for a, b in pairwise(linears)]
    return Stack(nn.Sequential(*layers), nn.Identity(), nn.Linear(linears[-1], num_classes))


def init_vgg(network: Stack) -> Stack:
    """Draw convolutions from N(0, 2 / fan_out) and linear layers from N(0, 0.01²), biases 0 (SPEC section 3)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return network


def alex(num_classes: int) -> Stack:
    """AlexNet for 32x32 images."""
    return plain_network([96, (256, 2), (384, 2), 384, (256, 2)], [4096, 2048], num_classes)


def vgg11(num_classes: int) -> Stack:
    """VGG-11 for 32x32 images."""
    convs = [64, (128, 2), 256, (256, 2), 512, (512, 2), 512, (512, 2)]
    return init_vgg(plain_network(convs, [2048, 4096, 4096], num_classes))


def vgg16(num_classes: int) -> nn.Sequential:
    """VGG-16 with batch normalisation and max-pooling for 32x32 images, and one linear layer after them.

    Source: Simonyan and Zisserman, ICLR 2015, configuration D, as the literature on conversion has it for CIFAR.
    """
    layers, channels = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, num_classes))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def alexnet_imagenet(num_classes: int) -> Stack:
    """AlexNet for 224x224 images: the max-poolings of the original became strides."""
    convs = [(64, 4, 11, 2), (192, 2, 5, 1), (384, 2, 3, 0), 256, (256, 2, 3, 0)]
    return plain_network(convs, [9216, 4096, 4096], num_classes)


def vgg11_imagenet(num_classes: int) -> Stack:
    """VGG-11 for 224x224 images."""
    convs = [(64, 2), (128, 2), 256, (256, 2), 512, (512, 2), 512, (512, 2)]
    return init_vgg(plain_network(convs, [25088, 4096, 4096], num_classes))


def vgg16_imagenet(num_classes: int) -> Stack:
    """VGG-16 for 224x224 images."""
    convs = [64, (64, 2), 128, (128, 2), 256, 256, (256, 2), 512, 512, (512, 2), 512, 512, (512, 2)]
    return init_vgg(plain_network(convs, [25088, 4096, 4096], num_classes))
