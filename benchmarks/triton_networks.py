"""Whole networks with and without the kernels, for the measurements of `triton_conv`."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import models
from models import State
from quant import calibrate_, quantize_
from snn_layers import deploy, to_spiking
from snn_layers.deploy import Deployed

BATCH, CHECKED = 512, 32  # images in a timing, in a comparison with float64


def microseconds(call: Callable[[], object], calls: int = 10, rounds: int = 7) -> float:
    """Return the median time of a call, replayed as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(rounds + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / calls)
    return statistics.median(times[2:])


def measure_network(arch: str, bits: int, row: dict) -> None:
    """Fill a row for a whole network, quantized, fitted to noise and converted: images [B, 3, 32, 32] to logits."""
    draw = torch.Generator().manual_seed(bits)
    images = torch.randn(BATCH, 3, 32, 32, generator=draw).cuda()
    torch.manual_seed(0)
    snn = to_spiking(calibrate_(quantize_(models.build(arch), bits), images[:64].cpu()).eval()).cuda()
    network, plain = deploy(snn), deploy(snn, integer=False)
    row["differing"] = differing(snn, network, images[:CHECKED])
    floating = models.build(arch).cuda().eval().bfloat16().to(memory_format=torch.channels_last)
    half = images.bfloat16().contiguous(memory_format=torch.channels_last)

    def whole(network: Deployed) -> Tensor:
        encoder, (_, last) = network.body[0], list(network.units())[-1]
        # Its check for NaN waits for the GPU, which a graph cannot.
        spikes = encoder.neuron(encoder.geometry.convolve(images.double(), encoder.weight, encoder.bias), None) \
            if encoder.kernel is None else encoder.kernel(images)
        return network.head(network.pool(last.neuron.rate(network.advance(State(spikes), 1, len(network.sites)).x)))

    with torch.inference_mode():
        row["default"] = microseconds(partial(whole, network), 2)
        row["layer_bf16"] = microseconds(partial(floating, half), 2)
        row["deployed"] = microseconds(partial(whole, plain), 2)
        row["eager"], row["eager_bf16"] = (eager(call) for call in (partial(network, images), partial(floating, half)))


def eager(call: Callable[[], object], rounds: int = 9) -> float:
    """Return the median microseconds of a call with all that Python does."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


@torch.no_grad()
def differing(snn: models.Network, network: Deployed, images: Tensor) -> int:
    """Return how many spikes of the units differ from a float64 run."""
    exact, found, count = State(images.double()), State(images), 0
    for site, other in zip(copy.deepcopy(snn).double().sites(), network.sites, strict=True):
        exact, found = site(exact), other(found)
        if hasattr(other.module, "neuron"):
            count += int(((exact.x / other.module.neuron.threshold).round() != found.x).sum())
    return count
