"""Layer-wise fine-tuning: each unit of a spiking network learns to put out what its quantized ANN puts out."""

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Network, State, Unit, mean_over_time
from quant import fault, quantized_once, time_steps

from .convert import own_parameters_
from .deploy import deploy
from .rate import unit_rate
from .states import Packed, advance, run, spikes_as_bytes, unpacked

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a unit is tuned.

    Attributes:
        epochs: passes over the batches, per unit.
        lr, momentum, weight_decay: of SGD.
        force: keep the state after each epoch; otherwise only where the accuracy on the check images rose.
        online: draw fresh batches in each pass and run the network up to the unit (published; O(L²) in the number of
            units). Otherwise the batches are drawn once and their states advance unit by unit: O(L), in the memory of
            one byte per spike and ANN activation.
        compile: compile the neuron that fires the kept states and the check images, see `deploy`.
    """

    epochs: int = 1
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    force: bool = False
    online: bool = False
    compile: bool = False


@dataclass(frozen=True)
class TunedUnit:
    """What tuning came to for one unit; accuracies in percent on the check images, losses before and in each epoch."""

    name: str
    accuracy_before: float
    accuracy_after: float
    kept_epochs: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class UnitProgress:
    """How far a unit is between two epochs, beside its weights, which are those last kept: plain values, to be saved.

    Attributes:
        before, best: accuracy in percent on the check images, of the unit as it was and as it is kept.
        kept_epochs, losses: as in `TunedUnit`.
        momenta: the optimizer's "state" that belongs to the kept weights.
    """

    before: float
    best: float
    kept_epochs: int
    losses: tuple[float, ...]
    momenta: dict[int, dict[str, Tensor]]


def finetune(snn: Network, ann: Network, batches: Batches, check: Batches, config: FinetuneConfig | None = None,
             first: int = 1, on_unit: Callable[[int, TunedUnit], None] | None = None,
             bar: Callable[[Iterable, str], Iterable] | None = None,
             average_: Callable[[Iterable[Tensor]], None] | None = None,
             on_epoch: Callable[[UnitProgress], None] | None = None, started: UnitProgress | None = None) -> list[TunedUnit]:
    """Tune the hidden units of `snn`, in place, in forward order; never the first unit, never the head.

    For a unit with spike input S: x̄ = mean_T S, ȳ = mean_T of its spike output, o = the unit as ANN layer on x̄ with BN in
    eval mode, out = o + (ȳ - o).detach(), loss = MSE(out, output of the ANN at this site). Trained are weights, biases,
    weight clips, BN scale and shift and the shortcut; thresholds and BN statistics stay.

    Args:
        snn: a spiking network; it may share its parameters with `ann`, which is copied first.
        ann: the quantized network it came from: the target.
        batches: (images [B, 3, H, W], labels) of training images; the labels are not used.
        check: training images, not augmented, on which the accuracy decides; never the test set.
        first: index of the unit to start with, to go on after an interruption.
        on_unit: called with (index, result) after each unit.
        bar: called with (items, name), returns the items; shows the progress of a pass.
        average_: called with tensors that it is to average, in place, over processes that tune on parts of the batches: the
            gradients of the unit, and counts. Nothing else is exchanged, and all processes keep the same weights.
        on_epoch: called after each epoch of a unit but its last.
        started: how far the first unit is, to go on within its epochs.

    Returns:
        one result per tuned unit.

    Raises:
        ValueError: the loss is no longer finite; names unit and batch.

    Source: Fast-SNN (Hu et al., TPAMI 2023), section 5.
    """
    config = config or FinetuneConfig()
    ann = deepcopy(ann).eval().requires_grad_(False)
    own_parameters_(snn.eval())
    tuner = _Tuner(snn, ann, batches, check, config, bar or (lambda items, name: items), average_ or (lambda tensors: None))
    results = []
    units = [index for index, site in enumerate(tuner.snn_sites) if isinstance(site.module, Unit)]
    with quantized_once(ann):
        for unit_index, site_index in enumerate(units):
            if unit_index < first:
                continue
            results.append(tuner.tune(site_index, on_epoch, started if unit_index == first else None))
            if on_unit is not None:
                on_unit(unit_index, results[-1])
    return results


class _Tuner:
    """The states of both networks around the unit that is tuned, and the tuning of one unit.

    The kept spikes are those of a deployment that takes over each unit as it learns.
    """

    def __init__(self, snn: Network, ann: Network, batches: Batches, check: Batches, config: FinetuneConfig,
                 bar: Callable[[Iterable, str], Iterable], average_: Callable[[Iterable[Tensor]], None]):
        self.snn, self.ann, self.batches, self.check, self.config = snn, ann, batches, check, config
        self.bar, self.average_ = bar, average_
        self.snn_sites, self.ann_sites = snn.sites(), ann.sites()
        self.deployed = deploy(snn, compile=config.compile)
        # Of the training batches the SNN's states in front of the unit and the ANN's behind it; of the check batches the
        # SNN's states and the labels; with the site in front of which they are.
        self.states: list[tuple[State, State | Packed]] | None = None
        self.check_states: list[tuple[State, Tensor]] | None = None
        self.position = self.check_position = 0
        self.accuracy: float | None = None  # of the network as it is; None before the first measurement

    def tune(self, index: int, on_epoch: Callable[[UnitProgress], None] | None = None,
             started: UnitProgress | None = None) -> TunedUnit:
        """Tune the unit at site `index`, from where it has been `started`, and keep the best state."""
        site = self.snn_sites[index]
        unit, config = site.module, self.config
        optimizer = torch.optim.SGD(trained_parameters(unit), config.lr, config.momentum, weight_decay=config.weight_decay)
        self._advance_check(index)
        if started is None:
            before = best = self._accuracy(index) if self.accuracy is None else self.accuracy
            kept_epochs, losses = 0, []
        else:
            before, best, kept_epochs, losses = started.before, started.best, started.kept_epochs, list(started.losses)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": started.momenta})
        kept = _snapshot(unit, optimizer)
        for epoch in range(len(losses), config.epochs):
            losses.append(self._epoch(index, epoch, optimizer))
            accuracy = self._accuracy(index)
            if config.force or accuracy > best:
                best, kept, kept_epochs = accuracy, _snapshot(unit, optimizer), epoch + 1
            else:
                unit.load_state_dict(kept[0])
                self.deployed.update_(index, unit)
                optimizer.load_state_dict(deepcopy(kept[1]))  # it would go on in the snapshot's momentum
            if on_epoch is not None and epoch + 1 < config.epochs:
                on_epoch(UnitProgress(before, best, kept_epochs, tuple(losses), kept[1]["state"]))
        self.accuracy = best
        return TunedUnit(site.name, before, best, kept_epochs, tuple(losses))

    def _epoch(self, index: int, epoch: int, optimizer: torch.optim.Optimizer) -> float:
        """Train the unit for one pass; return its mean loss."""
        unit, total, count = self.snn_sites[index].module, 0.0, 0
        for mean_input, spike_rate, target in (self._online if self.config.online else self._kept)(index, epoch):
            loss = unit_loss(unit, mean_input, spike_rate, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.average_(parameter.grad for parameter in unit.parameters() if parameter.grad is not None)
            optimizer.step()
            total, count = total + loss.item(), count + 1
        found = fault(unit) or (None if math.isfinite(total) else f"the loss is {total:g}")
        if found is not None:  # spikes hide it: a neuron whose current is NaN is merely silent
            raise ValueError(f"{found} after {self._name(index, epoch)}")
        self.deployed.update_(index, unit)
        return total / max(count, 1)

    @torch.no_grad()
    def _online(self, index: int, epoch: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield the unit's mean input x̄, its spike output's mean ȳ and the ANN's output, batch by batch, run from images."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(index * self.config.epochs + epoch)
        for images, _ in self.bar(self.batches, self._name(index, epoch)):
            state = run(self.snn_sites[:index], State(images))
            spikes = self.snn_sites[index](state).x
            means = [None if x is None else mean_over_time(x, self.snn.time_steps) for x in (state.x, state.residual, spikes)]
            yield State(*means[:2]), means[2], run(self.ann_sites[:index + 1], State(images)).x

    @torch.no_grad()
    def _kept(self, index: int, epoch: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield what `_online` does, from the kept states, which advance to this unit first."""
        unit = self.snn_sites[index].module
        if self.states is None:
            self.states = [(State(images), State(images)) for images, _ in self.batches]
        start, self.position = self.position, index
        behind = start + 1 if start else 0
        for number, (snn, ann) in enumerate(self.bar(self.states, self._name(index, epoch))):
            # The advanced states replace the old ones one batch at a time: both lists together would need twice the memory.
            snn = self._spikes(snn, start, index)
            ann = advance(ann, self.ann_sites, behind, index + 1, time_steps(self.ann.bit))
            self.states[number] = snn, ann
            target = unpacked(ann).x
            self.deployed.update_(index, unit)
            fired = self.deployed.advance(snn, index, index + 1)
            mean, spike_rate = self.deployed.mean_input(snn, index), self.deployed.sites[index].module.neuron.rate(fired.x)
            tensors = (mean.x, mean.residual, spike_rate)
            x, residual, spike_rate = (None if tensor is None else tensor.to(target.dtype) for tensor in tensors)
            yield State(x, residual), spike_rate, target

    def _spikes(self, state: State, start: int, stop: int) -> State:
        return spikes_as_bytes(self.deployed.advance(state, start, stop)) if stop > start else state

    def _name(self, index: int, epoch: int) -> str:
        return f"{self.snn_sites[index].name}, epoch {epoch + 1}/{self.config.epochs}"

    def _advance_check(self, index: int) -> None:
        if self.check_states is None:
            self.check_states = [(State(images), labels) for images, labels in self.check]
        for number, (state, labels) in enumerate(self.check_states):
            self.check_states[number] = (self._spikes(state, self.check_position, index), labels)
        self.check_position = index

    def _accuracy(self, index: int) -> float:
        """Return the accuracy of the spiking network on the check images in percent, run from site `index`."""
        counts = torch.zeros(2, dtype=torch.float64)  # right ones, all
        for state, labels in self.bar(self.check_states, f"{self.snn_sites[index].name}, check"):
            counts[0] += (self.deployed.finish(state, index).argmax(1) == labels).sum().item()
            counts[1] += len(labels)
        self.average_([counts])
        return 100 * (counts[0] / counts[1].clamp(min=1e-9)).item()


def trained_parameters(unit: Unit) -> list[torch.nn.Parameter]:
    """Return weights, biases, weight clips, BN scale and shift and the shortcut's: all but the threshold."""
    return [parameter for name, parameter in unit.named_parameters() if not name.endswith("threshold")]


def unit_loss(unit: Unit, mean_input: State, spike_rate: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of a spiking unit's mean output ȳ, with the gradient of the unit as ANN layer.

    Args:
        unit: a unit with a neuron.
        mean_input: x̄ [B, ...], with the residual where the unit joins one.
        spike_rate: ȳ [B, ...], the mean of the unit's spike output.
        target: the ANN's output at this site [B, ...].
    """
    return F.mse_loss(unit_rate(unit, mean_input.x, mean_input.residual, spike_rate), target)


def _snapshot(unit: Unit, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Return copies: on a CPU state dicts alias the live tensors."""
    return deepcopy(unit.state_dict()), deepcopy(optimizer.state_dict())
