"""How long a table's runs would take, from one training step and one forward pass of each network."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import models

from ..script import choose_device
from ..training.engine import sgd
from ..training.step import autocast
from . import stages
from .results import Row
from .stages import Stage

PROBE = {"cifar": (64, 32, 128), "imagenet": (2, 224, 1024)}  # images, their height and width in pixels; images of an update
REPEATED = 0.3  # seconds for which a probe is repeated, so that a short load from another job does not count


@dataclass(frozen=True)
class Speed:
    """Seconds of the float network for an image: in a training step, in a forward pass."""

    step: float
    forward: float


def probe(arch: str, dataset: str, amp: bool = False) -> Speed:
    """Return an architecture's speed on the device of the scripts: the fastest of some passes and updates."""
    count, size, update = PROBE[models.family(dataset)]
    device = choose_device(None)
    network = models.build(arch, dataset).to(device, memory_format=torch.channels_last)
    images = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    optimizer = sgd(network, 0.01, 0.9, 1e-4)

    def gradients() -> None:
        with autocast(device, amp):
            loss = F.cross_entropy(network(images), torch.zeros(count, dtype=torch.long, device=device))
        loss.backward()

    @torch.inference_mode()
    def forward() -> None:
        with autocast(device, amp):
            network.eval()(images)

    return Speed(fastest(gradients, device) / count + fastest(optimizer.step, device) / update, fastest(forward, device) / count)


def fastest(call: Callable[[], None], device: torch.device) -> float:
    """Return the shortest time of a call in seconds, of at least two calls."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < REPEATED:
        began = time.monotonic()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - began)
    return min(times)


class Plan:
    """The stages that are missing of some rows, and how long they would take.

    Attributes:
        missing: each missing stage once, in order; without the rows in `lost`.
        lost: names of the rows whose network is gone, as in a study of which only the results were passed on, with the finished
            stages that would have to make it again.
    """

    def __init__(self, rows: list[Row], study: Path):
        self.study = study
        lost = {row.name: [stage for chain in row.chains for stage in stages.lost(chain, study)] for row in rows}
        self.lost = {name: found for name, found in lost.items() if found}
        every = dict.fromkeys(stage for row in rows if row.name not in self.lost for chain in row.chains for stage in chain)
        # A training with all epochs done but no record costs nothing, and still has to run.
        self.left = {stage: stages.left(stage, study) for stage in every if stages.record_of(stage, study) is None}
        self.missing = list(self.left)
        kinds = [(stage.arch, stage.dataset, "--amp" in stage.flags) for stage in self.missing]
        self.speeds = {kind: probe(*kind) for kind in dict.fromkeys(kinds)}

    def minutes(self, chosen: list[Stage]) -> float:
        """Return the minutes that these stages would take, without finished ones."""
        return sum(self.left[stage] * self._seconds(stage) for stage in chosen if stage in self.left) / 60

    @property
    def remedy(self) -> str:
        """Return the remedy for the rows that are lost, as a message."""
        places = dict.fromkeys(str(self.study / stage.name) for found in self.lost.values() for stage in found)
        return (f"{len(self.lost)} rows need networks of which only the results are here: put them into {', '.join(places)}, or "
                "delete these directories, to train them anew")

    def of_row(self, row: Row) -> list[Stage]:
        """Return the missing stages of a row."""
        return [stage for stage in dict.fromkeys(stage for chain in row.chains for stage in chain) if stage in self.left]

    def _seconds(self, stage: Stage) -> float:
        speed = self.speeds[stage.arch, stage.dataset, "--amp" in stage.flags]
        return stage.trained * speed.step + stage.passes * speed.forward


def duration(minutes: float) -> str:
    """Return a time as text."""
    hours = minutes / 60
    days = hours / 24
    if minutes < 90:
        return f"{minutes:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{days:.0f} days" if days < 1000 else f"{days / 365:.0f} years"
