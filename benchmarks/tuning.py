"""Tuning: the published way over kept values; a global step, and one of backpropagation through time, over an ANN step."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from quant import time_steps
from snn_layers import FinetuneConfig, RateNetwork, ThroughTime, finetune, to_spiking
from utils.training.engine import sgd
from utils.training.step import Step

from .rows import BATCH, Row, networks, noise, row
from .timing import alternate, peak_bytes


def tuning(batches: int = 10, checked: int = 2, rounds: int = 3) -> list[Row]:
    """Layer-wise tuning in the published way, which runs the network up to the unit each time, over tuning with kept values.

    There are a fifth as many check images as tuning images, as in snn_ft.py's defaults.
    """
    _, ann = networks("resnet20", 2)
    count = batches * BATCH
    parts = [(part, torch.zeros(len(part), dtype=torch.long)) for part in noise(count).split(BATCH)]

    def run(online: bool, parts: Sequence[tuple[Tensor, Tensor]] = parts) -> None:
        finetune(to_spiking(ann), ann, parts, parts[:checked], FinetuneConfig(lr=1e-4, online=online, compile=True))

    run(False, parts[:checked])  # the neuron is compiled once
    times = alternate({"online": partial(run, True), "kept": partial(run, False)}, rounds, warm_up=0, name="fine-tuning")
    return [row(times, f"fine-tuning all of ResNet-20, {count} images: --online / default", "online", "kept", 4, 8, at_most=False)]


def trainable(kind: str, bit: int) -> nn.Module:
    """Return ResNet-20 as an ANN, for global tuning, or unrolled through time."""
    _, ann = networks("resnet20", bit)
    if kind == "ANN":
        return ann.train()
    snn = to_spiking(ann, "unsigned")
    if kind == "global":
        return RateNetwork(snn)
    return ThroughTime(snn).train()


def whole(rounds: int = 5) -> list[Row]:
    """A step of global tuning, and one through time, over a training step of the quantized ANN: time and memory."""
    images, labels, rows = noise(BATCH), torch.arange(BATCH) % 10, []
    for bit in (2, 3):
        steps, contenders = time_steps(bit), {}
        for kind in ("ANN", "global", "through time"):
            network = trainable(kind, bit)
            contenders[kind] = partial(Step(network, sgd(network, 1e-5, 0.9, 1e-4)), images, labels, 1e-5)
        times = alternate(contenders, rounds, name=f"global step, T = {steps}")
        rows.append(row(times, f"global step T={steps}, ResNet-20 / ANN step", "global", "ANN", 1 + 0.4 * steps))
        rows.append(row(times, f"backpropagation through time T={steps} / ANN step", "through time", "ANN"))
        peaks = {kind: peak_bytes(SETUP.format(kind=kind, bit=bit), STEP) for kind in contenders}
        for kind, target in (("global", 1.5), ("through time", None)):
            ratio = peaks[kind] / peaks["ANN"]
            rows.append(Row(f"memory of the same, {kind}, T={steps} / ANN step", ratio, ratio, ratio, target))
    return rows


SETUP = """
import torch
from benchmarks.rows import noise
from benchmarks.tuning import trainable
from utils.training.engine import sgd
from utils.training.step import Step
network = trainable("{kind}", {bit})
step = Step(network, sgd(network, 1e-5, 0.9, 1e-4))
step(noise(8), torch.arange(8), 1e-5)
images, labels = noise(128), torch.arange(128) % 10
"""
STEP = "step(images, labels, 1e-5)"
