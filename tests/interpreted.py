"""Runs the kernels in Triton's interpreter on a CPU, in a process of its own: the variable counts when Triton is imported."""

import copy
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models import BasicBlock, Network
from models.unit import conv_unit, linear_unit
from quant import calibrate_, quantize_
from snn_layers import integrate_and_fire, to_spiking
from snn_layers.deploy import Deployed
from snn_layers.integer import Geometry
from snn_layers.kernels.convolution import Tile
from snn_layers.kernels.encoding import encode_current, encode_images, pack_encoding
from snn_layers.kernels.launch import SpikingConvolution, neuron_levels, pack, spiking_convolution
from snn_layers.kernels.units import KernelConv

LOOP, SMALL = Tile(32, 16, 32, False, 4, 1), Tile(16, 16, 32, True, 4, 1)
# T, B, C, C', H, W, kernel; stride, padding, dilation, groups; signed, delay, start; second source; tile
CASES = {
    "signed": ((3, 2, 16, 16, 9, 7, 3), (1, 1, 1, 1), (True, 0, 0.5), None, None),
    "unsigned": ((7, 2, 16, 8, 6, 6, 3), (1, 1, 1, 1), (False, 0, 0.5), None, LOOP),
    "stride": ((3, 2, 32, 20, 9, 7, 3), (2, 1, 1, 1), (True, 0, 0.5), None, SMALL),
    "delay": ((7, 1, 5, 7, 5, 6, 3), (1, 1, 1, 1), (True, 2, 0.5), None, SMALL),
    "all steps of delay": ((3, 2, 5, 7, 5, 6, 3), (1, 1, 1, 1), (False, 3, 0.5), None, LOOP),
    "groups": ((3, 2, 6, 10, 5, 6, 3), (1, 1, 1, 2), (True, 0, 0.5), None, SMALL),
    "depthwise": ((3, 1, 6, 6, 5, 6, 3), (2, 1, 1, 6), (True, 1, 0.5), None, LOOP),
    "dilation": ((3, 1, 7, 18, 9, 8, 3), (1, 2, 2, 1), (True, 0, 0.5), None, LOOP),
    "no padding": ((3, 1, 5, 4, 9, 8, 5), (2, 0, 1, 1), (True, 0, 0.5), None, SMALL),
    "start at 0": ((7, 2, 16, 8, 6, 6, 3), (1, 1, 1, 1), (True, 0, 0.0), None, LOOP),
    "identity": ((7, 2, 9, 9, 7, 5, 3), (1, 1, 1, 1), (True, 0, 0.5), "identity", SMALL),
    "identity with groups and delay": ((3, 2, 40, 40, 3, 5, 3), (1, 1, 1, 2), (False, 1, 0.5), "identity", LOOP),
    "shortcut": ((3, 2, 20, 18, 9, 7, 3), (1, 1, 1, 1), (True, 0, 0.5), "shortcut", SMALL),
    "shortcut with delay": ((7, 1, 33, 5, 5, 4, 3), (1, 1, 1, 1), (True, 2, 0.5), "shortcut", LOOP),
    "linear": ((15, 9, 70, 20, 1, 1, 1), (1, 0, 1, 1), (True, 0, 0.5), None, LOOP),
}


def kernel_case(sizes: tuple, moves: tuple, neuron: tuple, source: str | None, tile: Tile | None) -> tuple[Tensor, Tensor]:
    """Return (found, expected) spikes of a unit with random weights, as the kernel and as a float64 run fire them."""
    steps, batch, inputs, outputs, height, width, size = sizes
    geometry = Geometry((moves[0],) * 2, (moves[1],) * 2, (moves[2],) * 2, moves[3])
    draw = torch.Generator().manual_seed(sum(sizes))
    spikes = torch.randint(-1, 2, (steps * batch, inputs, height, width), generator=draw, dtype=torch.int8)
    weight = torch.randint(-8, 9, (outputs, inputs // geometry.groups, size, size), generator=draw).double()
    scale, bias, factor = torch.rand(3, outputs, generator=draw, dtype=torch.float64)
    scale, bias, factor = 0.2 * scale + 0.01, bias - 0.5, factor - 0.3 if source else 0 * factor
    theta = torch.full_like(scale, 2.3)
    total, largest, second, side = geometry.convolve(spikes.double(), weight), weight.abs().sum((1, 2, 3)), None, None
    current = scale[:, None, None] * total + bias[:, None, None]
    if source == "identity":
        second = torch.randint(-1, 2, total.shape, generator=draw, dtype=torch.int8)
        current, largest = current + factor[:, None, None] * second, largest + factor.abs() / scale
    if source == "shortcut":
        wide = (steps * batch, 5, 2 * total.shape[2] - 1, 2 * total.shape[3])
        second = torch.randint(-1, 2, wide, generator=draw, dtype=torch.int8)
        beside = torch.randint(-8, 9, (outputs, 5, 1, 1), generator=draw).double()
        current = current + factor[:, None, None] * F.conv2d(second.double(), beside, None, 2)
        largest, side = largest + beside.abs().sum((1, 2, 3)) * factor.abs() / scale, pack(beside, Geometry((2, 2)))
    signed, delay, start = neuron
    levels = neuron_levels(scale, theta, bias, factor, largest, steps, start)
    unit = SpikingConvolution(pack(weight, geometry), levels, steps, signed, delay, side)
    expected = integrate_and_fire(current.unflatten(0, (steps, -1)), theta[0], signed, delay, start)
    return spiking_convolution(spikes, unit, second, tile), expected.flatten(0, 1)


def encoding_case(name: str, signed: bool, delay: int) -> tuple[Tensor, Tensor]:
    """Return (found, expected) spikes of a first unit on [3, 3, 9, 7] images that are no dense tensor."""
    draw = torch.Generator().manual_seed(delay)
    images = torch.randn(3, 9, 14, 3, generator=draw).permute(0, 3, 1, 2)[..., ::2]
    weight, bias = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((10, 3, 3, 3), (10,)))
    theta, geometry = torch.tensor(2.1, dtype=torch.float64), Geometry((2, 2), (1, 1))
    current = geometry.convolve(images.double(), weight, bias)
    expected = integrate_and_fire(current.expand(7, *current.shape), theta, signed, delay).flatten(0, 1)
    if name == "current":
        return encode_current(current, theta, 7, signed, delay), expected
    return encode_images(images, pack_encoding(weight, geometry), bias, theta, 7, signed, delay), expected


def small_network() -> Network:
    """Return a 2-bit network with a stride, a shortcut, an identity and a linear unit, fitted to noise."""
    torch.manual_seed(0)
    body = nn.Sequential(conv_unit(3, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1), nn.Flatten(), linear_unit(320, 24))
    network = Network(body, nn.Identity(), nn.Linear(24, 5))
    network.arch, network.dataset = "resnet20", "cifar10"
    return calibrate_(quantize_(network, 2), torch.randn(24, 3, 9, 7)).eval()


@torch.no_grad()
def network_case(neuron: str, delay: int, kernels: int) -> tuple[Tensor, Tensor]:
    """Return (found, expected) spikes of all units of a deployed network, of which so many units must run as kernels."""
    snn = to_spiking(small_network(), neuron, delay)
    network, images = Deployed(snn, KernelConv, None, False), torch.randn(3, 3, 9, 7)
    if sum(getattr(site.module, "kernel", None) is not None for site in network.sites) != kernels:
        raise AssertionError("a unit does not run as a kernel")
    exact, found, trains = models.State(images.double()), models.State(images), ([], [])
    for site, deployed in zip(copy.deepcopy(snn).double().sites(), network.sites, strict=True):
        exact, found = site(exact), deployed(found)
        if hasattr(deployed.module, "neuron"):
            trains[0].append(found.x.flatten())
            trains[1].append((exact.x / deployed.module.neuron.threshold).round().flatten())
    torch.testing.assert_close(network(images), copy.deepcopy(snn).double()(images.double()).float(), rtol=1e-4, atol=1e-5)
    return torch.cat(trains[0]), torch.cat(trains[1])


def summary(found: Tensor, expected: Tensor) -> dict:
    """Return what a test looks at."""
    expected = expected.to(torch.int8)
    return {"differing": int((found != expected).sum()) if found.shape == expected.shape else -1, "bytes": found.dtype == torch.int8,
            "fired": int((expected > 0).sum()), "taken back": int((expected < 0).sum()), "spikes": expected.numel()}


def main() -> None:
    """Print the summaries of all cases as JSON."""
    found = {name: summary(*kernel_case(*case)) for name, case in CASES.items()}
    for signed, delay in ((True, 0), (False, 0), (True, 2), (False, 7)):
        for name in ("current", "images"):
            found[f"encoding {name} {signed} {delay}"] = summary(*encoding_case(name, signed, delay))
    for neuron, delay in (("signed", 0), ("unsigned", 1)):
        found[f"network {neuron} {delay}"] = summary(*network_case(neuron, delay, 6))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
