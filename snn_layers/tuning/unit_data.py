"""The data on which the units of a spiking network are tuned: values of both networks, which advance from unit to unit."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from models import INPUT, Network, Values, mean_over_time

from ..deployment.deploy import deploy
from ..stored import advance, spikes_as_bytes, unpacked

Batches = Iterable[tuple[Tensor, Tensor]]
Bar = Callable[[Iterable, str], Iterable]
Average = Callable[[Iterable[Tensor]], None]


class UnitData:
    """The values of both networks around the unit that is tuned, and the accuracy after it.

    The kept spikes come from a deployment that takes over each unit as it learns.

    Args:
        snn, ann, batches, check, bar, average_: as in `finetune`.
        epochs, online, compile: as in `FinetuneConfig`.
    """

    def __init__(self, snn: Network, ann: Network, batches: Batches, check: Batches, epochs: int, online: bool, compile: bool,
                 bar: Bar, average_: Average):
        self.snn, self.ann, self.batches, self.check = snn, ann, batches, check
        self.epochs, self.online, self.bar, self.average_ = epochs, online, bar, average_
        self.units = snn.graph.units
        self.deployed = deploy(snn, compile=compile)
        # Training batches: the SNN's values before a unit and the ANN's after it. Check batches: the SNN's values before a unit
        # and the labels. Beside both the index of that unit, 0 for images.
        self.kept: list[tuple[Values, Values]] | None = None
        self.check_kept: list[tuple[Values, Tensor]] | None = None
        self.position = self.check_position = 0

    def learned(self, index: int) -> None:
        """Take over the unit `index` as it is now."""
        self.deployed.update_(self.snn, self.units[index])

    def inputs(self, index: int, epoch: int) -> Iterator[tuple[Values, Tensor, Tensor]]:
        """Yield, batch by batch, the means x̄ that the unit `index` reads, the mean ȳ of its spikes and the ANN's output."""
        return (self._online if self.online else self._kept)(index, epoch)

    @torch.no_grad()
    def _online(self, index: int, epoch: int) -> Iterator[tuple[Values, Tensor, Tensor]]:
        """Yield `inputs`, run from images."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(index * self.epochs + epoch)
        unit = self.units[index]
        for images, _ in self.bar(self.batches, self.name(index, epoch)):
            snn, ann = {INPUT: images}, {INPUT: images}
            for before in self.units[:index]:
                snn, ann = self.snn.advance(before, snn), self.ann.advance(before, ann)
            means = {name: self.snn.mean(name, snn[name]) for name in unit.inputs}
            spikes = self.snn.advance(unit, snn)[unit.name]
            yield means, mean_over_time(spikes, self.snn.time_steps), self.ann.advance(unit, ann)[unit.name]

    @torch.no_grad()
    def _kept(self, index: int, epoch: int) -> Iterator[tuple[Values, Tensor, Tensor]]:
        """Yield `inputs`, from the kept values, which advance to this unit first."""
        if self.kept is None:
            self.kept = [({INPUT: images}, {INPUT: images}) for images, _ in self.batches]
        start, self.position = self.position, index
        reached, unit = start + 1 if start else 0, self.units[index]
        for number, (snn, ann) in enumerate(self.bar(self.kept, self.name(index, epoch))):
            # The advanced values replace the old ones one batch at a time: both lists together would need twice the memory.
            snn = self._spikes(snn, start, index)
            for before in self.units[reached:index + 1]:
                ann = advance(self.ann, before, ann)
            self.kept[number] = snn, ann
            target = unpacked(ann[unit.name])
            self.learned(index)
            _, fired = self.deployed.step(unit, snn)
            spike_rate = self.deployed.neuron(unit.name).rate(fired)
            means = {name: self.deployed.mean(name, snn[name]).to(target.dtype) for name in unit.inputs}
            yield means, spike_rate.to(target.dtype), target

    def _spikes(self, values: Values, start: int, stop: int) -> Values:
        return spikes_as_bytes(self.deployed.advance(values, start, stop), self.deployed.index)

    def name(self, index: int, epoch: int) -> str:
        """Return the name of a pass of a unit, for messages."""
        return f"{self.units[index].name}, epoch {epoch + 1}/{self.epochs}"

    def advance_check(self, index: int) -> None:
        """Advance the check images' values up to the unit `index`; online they stay images."""
        if self.check_kept is None:
            self.check_kept = [({INPUT: images}, labels) for images, labels in self.check]
        if self.online:
            return
        for number, (values, labels) in enumerate(self.check_kept):
            self.check_kept[number] = (self._spikes(values, self.check_position, index), labels)
        self.check_position = index

    def accuracy(self, index: int) -> float:
        """Return the accuracy of the spiking network on the check images in percent, run from their kept values."""
        hits, count = 0, 0
        for values, labels in self.bar(self.check_kept, f"{self.units[index].name}, check"):
            hits = hits + (self.deployed.finish(values, self.check_position).argmax(1) == labels).sum()
            count += len(labels)
        counts = torch.tensor([float(hits), float(count)], dtype=torch.float64)
        self.average_([counts])
        return 100 * (counts[0] / counts[1].clamp(min=1e-9)).item()
