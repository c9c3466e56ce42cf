"""What the units of a spiking network are tuned on: states of both networks, which advance from unit to unit."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from models import Network, State, mean_over_time
from quant import time_steps

from .deploy import deploy
from .states import Packed, advance, run, spikes_as_bytes, unpacked

Batches = Iterable[tuple[Tensor, Tensor]]
Bar = Callable[[Iterable, str], Iterable]
Average = Callable[[Iterable[Tensor]], None]


class UnitData:
    """The states of both networks around the unit that is tuned, and the accuracy behind it.

    The kept spikes are those of a deployment that takes over each unit as it learns.

    Args:
        snn, ann, batches, check, bar, average_: as in `finetune`.
        epochs, online, compile: as in `FinetuneConfig`.
    """

    def __init__(self, snn: Network, ann: Network, batches: Batches, check: Batches, epochs: int, online: bool, compile: bool,
                 bar: Bar, average_: Average):
        self.snn, self.ann, self.batches, self.check = snn, ann, batches, check
        self.epochs, self.online, self.bar, self.average_ = epochs, online, bar, average_
        self.snn_sites, self.ann_sites = snn.sites(), ann.sites()
        self.deployed = deploy(snn, compile=compile)
        # Of the training batches the SNN's states in front of the unit and the ANN's behind it; of the check batches the
        # SNN's states and the labels; with the site in front of which they are, 0 for images.
        self.states: list[tuple[State, State | Packed]] | None = None
        self.check_states: list[tuple[State, Tensor]] | None = None
        self.position = self.check_position = 0

    def learned(self, index: int) -> None:
        """Take over the unit at site `index` as it is now."""
        self.deployed.update_(index, self.snn_sites[index].module)

    def inputs(self, index: int, epoch: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield the mean input x̄ of the unit at site `index`, its spike output's mean ȳ and the ANN's output, batch by batch."""
        return (self._online if self.online else self._kept)(index, epoch)

    @torch.no_grad()
    def _online(self, index: int, epoch: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield `inputs`, run from images."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(index * self.epochs + epoch)
        for images, _ in self.bar(self.batches, self.name(index, epoch)):
            state = run(self.snn_sites[:index], State(images))
            spikes = self.snn_sites[index](state).x
            means = [None if x is None else mean_over_time(x, self.snn.time_steps) for x in (state.x, state.residual, spikes)]
            yield State(*means[:2]), means[2], run(self.ann_sites[:index + 1], State(images)).x

    @torch.no_grad()
    def _kept(self, index: int, epoch: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield `inputs`, from the kept states, which advance to this unit first."""
        if self.states is None:
            self.states = [(State(images), State(images)) for images, _ in self.batches]
        start, self.position = self.position, index
        behind = start + 1 if start else 0
        for number, (snn, ann) in enumerate(self.bar(self.states, self.name(index, epoch))):
            # The advanced states replace the old ones one batch at a time: both lists together would need twice the memory.
            snn = self._spikes(snn, start, index)
            ann = advance(ann, self.ann_sites, behind, index + 1, time_steps(self.ann.bit))
            self.states[number] = snn, ann
            target = unpacked(ann).x
            self.learned(index)
            fired = self.deployed.advance(snn, index, index + 1)
            mean, spike_rate = self.deployed.mean_input(snn, index), self.deployed.sites[index].module.neuron.rate(fired.x)
            tensors = (mean.x, mean.residual, spike_rate)
            x, residual, spike_rate = (None if tensor is None else tensor.to(target.dtype) for tensor in tensors)
            yield State(x, residual), spike_rate, target

    def _spikes(self, state: State, start: int, stop: int) -> State:
        return spikes_as_bytes(self.deployed.advance(state, start, stop)) if stop > start else state

    def name(self, index: int, epoch: int) -> str:
        """Return what a pass of a unit is called."""
        return f"{self.snn_sites[index].name}, epoch {epoch + 1}/{self.epochs}"

    def advance_check(self, index: int) -> None:
        """Bring the check images' states in front of site `index`; online they stay images."""
        if self.check_states is None:
            self.check_states = [(State(images), labels) for images, labels in self.check]
        if self.online:
            return
        for number, (state, labels) in enumerate(self.check_states):
            self.check_states[number] = (self._spikes(state, self.check_position, index), labels)
        self.check_position = index

    def accuracy(self, index: int) -> float:
        """Return the accuracy of the spiking network on the check images in percent, run from where their states are."""
        counts = torch.zeros(2, dtype=torch.float64)  # right ones, all
        for state, labels in self.bar(self.check_states, f"{self.snn_sites[index].name}, check"):
            counts[0] += (self.deployed.finish(state, self.check_position).argmax(1) == labels).sum().item()
            counts[1] += len(labels)
        self.average_([counts])
        return 100 * (counts[0] / counts[1].clamp(min=1e-9)).item()
