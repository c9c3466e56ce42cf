"""Units with random weights and spikes, for the measurements of `triton_conv`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_layers.functional import integrate_and_fire
from snn_layers.fused import fire, neuron_constants
from snn_layers.integer import Geometry

THETA = 1.7


@dataclass(frozen=True)
class Shape:
    """A unit: `source` "identity" adds a residual, "shortcut" a 1x1 convolution with stride 2 of half the channels."""

    name: str
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1
    source: str = ""
    groups: int = 1
    swept: bool = False

    @property
    def padding(self) -> int:
        """Zeros around the image."""
        return self.kernel // 2


SHAPES = [
    Shape("resnet20 16-16", 16, 16, 32, swept=True), Shape("resnet20 16-16 identity", 16, 16, 32, source="identity", swept=True),
    Shape("resnet20 16-32/2", 16, 32, 32, stride=2), Shape("resnet20 32-32 shortcut", 32, 32, 16, source="shortcut"),
    Shape("resnet20 32-32", 32, 32, 16), Shape("resnet20 32-32 identity", 32, 32, 16, source="identity", swept=True),
    Shape("resnet20 32-64/2", 32, 64, 16, stride=2, swept=True), Shape("resnet20 64-64 shortcut", 64, 64, 8, source="shortcut"),
    Shape("resnet20 64-64", 64, 64, 8), Shape("resnet20 64-64 identity", 64, 64, 8, source="identity", swept=True),
    Shape("alex 96-256/2", 96, 256, 32, stride=2, swept=True), Shape("alex 256-384/2", 256, 384, 16, stride=2),
    Shape("alex 384-384", 384, 384, 8, swept=True), Shape("alex 384-256/2", 384, 256, 8, stride=2),
    Shape("alex 4096-2048", 4096, 2048, 1, 1, swept=True),
]
ODD = [Shape("odd 19-23/2 groups", 2 * 19, 2 * 23, 13, stride=2, groups=2),
       Shape("odd 35-17 identity", 35, 17, 9, source="identity")]


class Layer:
    """A unit with random weights and constants, and random spikes in front of it."""

    def __init__(self, shape: Shape, steps: int, signed: bool, batch: int, delay: int = 0):
        from snn_layers.kernels.launch import SpikingConvolution, neuron_levels, pack

        self.shape, self.steps, self.signed, self.delay, self.batch = shape, steps, signed, delay, batch
        draw = torch.Generator("cuda").manual_seed(steps + shape.inputs)
        size = (shape.outputs, shape.inputs // shape.groups, shape.kernel, shape.kernel)
        self.weight = torch.randint(-4, 5, size, generator=draw, device="cuda").double()
        self.scale, self.bias, factor = torch.rand(3, shape.outputs, generator=draw, device="cuda", dtype=torch.float64)
        self.scale, self.bias = (self.scale + 0.1) / self.weight[0].numel() ** 0.5, (self.bias - 0.4)
        self.factor = factor if shape.source else torch.zeros_like(factor)
        largest, self.second, self.side = self.weight.abs().sum((1, 2, 3)), None, None
        self.spikes = self.draw((steps * batch, shape.inputs, shape.size, shape.size), draw)
        size = (shape.size - 1) // shape.stride + 1
        if shape.source == "identity":
            self.second = self.draw((steps * batch, shape.outputs, size, size), draw)
            largest = largest + self.factor / self.scale
        if shape.source == "shortcut":
            self.side = torch.randint(-4, 5, (shape.outputs, shape.inputs // 2, 1, 1), generator=draw, device="cuda").double()
            self.second = self.draw((steps * batch, shape.inputs // 2, 2 * size, 2 * size), draw)
            largest = largest + self.side.abs().sum((1, 2, 3)) * self.factor / self.scale
        self.theta = torch.full_like(self.scale, THETA)
        self.constants = neuron_constants(self.scale, self.theta, self.bias, self.factor, largest, steps)
        levels = neuron_levels(self.scale, self.theta, self.bias, self.factor, largest, steps)
        weights = pack(self.weight, Geometry((shape.stride,) * 2, (shape.padding,) * 2, groups=shape.groups))
        side = None if self.side is None else pack(self.side, Geometry((2, 2)))
        self.unit = SpikingConvolution(weights, levels, steps, signed, delay, side)

    @staticmethod
    def draw(size: tuple[int, ...], draw: torch.Generator) -> Tensor:
        """Return spikes, channels last: a third of them fire, some take back."""
        values = torch.tensor([0, 0, 0, 0, 1, 1, 1, -1], dtype=torch.int8, device="cuda")
        spikes = values[torch.randint(0, 8, size, generator=draw, device="cuda")]
        return spikes.contiguous(memory_format=torch.channels_last)

    def conv(self, spikes: Tensor, second: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return both accumulators as PyTorch computes them."""
        shape = self.shape
        total = F.conv2d(spikes.to(dtype), self.weight.to(dtype), None, shape.stride, shape.padding, 1, shape.groups)
        if self.side is not None:
            second = F.conv2d(second.to(dtype), self.side.to(dtype), None, 2)
        return total, second

    def run(self, tile: tuple | None = None) -> Tensor:
        """Return the kernel's spikes."""
        from snn_layers.kernels.launch import spiking_convolution

        return spiking_convolution(self.spikes, self.unit, self.second, tile)

    def differing(self, tile: tuple | None = None) -> int:
        """Return how many spikes differ from a float64 run."""
        total, second = self.conv(self.spikes, self.second, torch.float64)
        current = self.scale[:, None, None] * total + self.bias[:, None, None]
        if second is not None:
            current += self.factor[:, None, None] * second
        expected = integrate_and_fire(current.unflatten(0, (self.steps, -1)), self.theta[0], self.signed, self.delay)
        return int((self.run(tile) != expected.flatten(0, 1)).sum())

    def deployed(self) -> Callable[[], Tensor]:
        """Return the present path: accumulators in float32, then the fused neuron."""
        function = torch.compile(fire)
        weight = self.weight.float().contiguous(memory_format=torch.channels_last)

        def rows(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.permute(0, 2, 3, 1).reshape(self.steps, -1, x.shape[1])

        def call() -> Tensor:
            self.weight = weight
            total, second = self.conv(self.spikes, self.second, torch.float32)
            return function(rows(total), rows(second), self.constants, self.steps, self.signed, self.delay, 0, torch.float32)

        return call

    def float_layer(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """Return the layer of the float network in bfloat16, on one batch: the convolution alone, and with all around it."""
        shape, dtype = self.shape, torch.bfloat16
        x, second = self.spikes[: self.batch].to(dtype), None if self.second is None else self.second[: self.batch].to(dtype)
        weight = self.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        side = None if self.side is None else self.side.to(dtype)
        mean = torch.zeros(shape.outputs, device="cuda")

        def conv() -> Tensor:
            return F.conv2d(x, weight, None, shape.stride, shape.padding, 1, shape.groups)

        def layer() -> Tensor:
            y = F.batch_norm(conv(), mean, mean + 1)
            if side is not None:
                y = y + F.batch_norm(F.conv2d(second, side, None, 2), mean, mean + 1)
            elif second is not None:
                y = y + second
            return F.relu_(y)

        return conv, layer


def candidates(shape: Shape) -> list[tuple[int, int, int, bool, int, int]]:
    """Return the tiles worth a try: (pixels, channels, depth, unroll, warps, stages)."""
    width = shape.outputs // shape.groups
    channels = max(16, 1 << (width - 1).bit_length())
    if channels <= 64:
        tiles = [(pixels, channels, depth, unroll, warps, stages) for pixels in (64, 128, 256) for depth in (32, 64, 128)
                 for unroll in (True, False) for warps in (4, 8) for stages in (1, 2, 3)]
        return [tile for tile in tiles
                if 1024 * tile[4] // 4 <= tile[0] * channels <= 4096 * tile[4] // 4 and tile[0] >= 16 * tile[4]
                and tile[2] <= shape.inputs * 9 and not (tile[2] == 128 and channels < 64)
                and tile[5] in ((1, 2) if tile[3] else (2, 3)) and not (channels == 64 and tile[3] and tile[5] == 1)]
    shapes = ((128, 128, 8), (128, 64, 4), (128, 64, 8), (64, 128, 8), (64, 64, 4), (128, 256, 8), (256, 128, 8))
    return [(pixels, width, depth, False, warps, stages) for pixels, width, warps in shapes for depth in (64, 128)
            for stages in (3, 4) if (pixels + width) * depth * stages < 220_000]
