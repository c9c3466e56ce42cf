"""Layer-wise fine-tuning: each unit of a spiking network learns to put out what its quantized ANN puts out."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Network, State, Unit, mean_over_time
from quant import quantized_once

from .deploy import deploy
from .rate import unit_rate
from .states import Packed, advance, run, unpacked

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
        compile: run the check images through a deployment, see `deploy`; the plain layers do it otherwise.
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


def finetune(snn: Network, ann: Network, batches: Batches, check: Batches, config: FinetuneConfig | None = None,
             first: int = 1, on_unit: Callable[[int, TunedUnit], None] | None = None,
             bar: Callable[[Iterable, str], Iterable] | None = None) -> list[TunedUnit]:
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

    Returns:
        one result per tuned unit.

    Source: Fast-SNN (Hu et al., TPAMI 2023), section 5.
    """
    config = config or FinetuneConfig()
    ann = deepcopy(ann).eval().requires_grad_(False)
    own_parameters_(snn.eval())
    tuner = _Tuner(snn, ann, batches, check, config, bar or (lambda items, name: items))
    results = []
    units = [index for index, site in enumerate(tuner.snn_sites) if isinstance(site.module, Unit)]
    for unit_index, site_index in enumerate(units):
        if unit_index < first:
            continue
        results.append(tuner.tune(site_index))
        if on_unit is not None:
            on_unit(unit_index, results[-1])
    return results


def own_parameters_(network: Network) -> None:
    """Give a network parameters of its own, in place, so that tuning it leaves the ANN that it shared them with as it was."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))


class _Tuner:
    """The states of both networks in front of the unit that is tuned, and the tuning of one unit."""

    def __init__(self, snn: Network, ann: Network, batches: Batches, check: Batches, config: FinetuneConfig,
                 bar: Callable[[Iterable, str], Iterable]):
        self.snn, self.ann, self.batches, self.check, self.config, self.bar = snn, ann, batches, check, config, bar
        self.snn_sites, self.ann_sites = snn.sites(), ann.sites()
        # (SNN, ANN) states of the training batches, and (SNN state, labels) of the check batches, with their positions.
        self.states: list[tuple[State | Packed, State | Packed]] | None = None
        self.check_states: list[tuple[State | Packed, Tensor]] | None = None
        self.position = self.check_position = 0
        self.accuracy: float | None = None  # of the network as it is; None before the first measurement

    def tune(self, index: int) -> TunedUnit:
        """Tune the unit at site `index` and keep the best state."""
        site = self.snn_sites[index]
        unit, config = site.module, self.config
        parameters = [p for name, p in unit.named_parameters() if not name.endswith("threshold")]
        optimizer = torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
        self._advance_check(index)
        before = best = self._accuracy(index) if self.accuracy is None else self.accuracy
        kept, kept_epochs, losses = _snapshot(unit, optimizer), 0, []
        for epoch in range(config.epochs):
            losses.append(self._epoch(index, epoch, optimizer))
            accuracy = self._accuracy(index)
            if config.force or accuracy > best:
                best, kept, kept_epochs = accuracy, _snapshot(unit, optimizer), epoch + 1
            else:
                unit.load_state_dict(kept[0])
                optimizer.load_state_dict(deepcopy(kept[1]))  # it would go on in the snapshot's momentum
        self.accuracy = best
        return TunedUnit(site.name, before, best, kept_epochs, tuple(losses))

    def _epoch(self, index: int, epoch: int, optimizer: torch.optim.Optimizer) -> float:
        """Train the unit for one pass; return its mean loss."""
        unit, total, count = self.snn_sites[index].module, 0.0, 0
        for state, ann_state in self._inputs(index, epoch):
            with torch.no_grad():
                target = self.ann_sites[index](ann_state).x
            loss = unit_loss(unit, state, target, self.snn.time_steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total, count = total + loss.item(), count + 1
        return total / max(count, 1)

    @torch.no_grad()
    def _inputs(self, index: int, epoch: int) -> Iterator[tuple[State, State]]:
        """Yield the states of SNN and ANN in front of site `index`, batch by batch."""
        name = f"{self.snn_sites[index].name}, epoch {epoch + 1}/{self.config.epochs}"
        if self.config.online:
            if hasattr(self.batches, "set_epoch"):
                self.batches.set_epoch(index * self.config.epochs + epoch)
            for images, _ in self.bar(self.batches, name):
                yield run(self.snn_sites[:index], State(images)), run(self.ann_sites[:index], State(images))
            return
        if self.states is None:
            self.states = [(State(images), State(images)) for images, _ in self.batches]
        start, self.position = self.position, index
        for number, (snn, ann) in enumerate(self.bar(self.states, name)):
            # The packed states replace the old ones one batch at a time: both lists together would need twice the memory.
            self.states[number] = (advance(snn, self.snn_sites, start, index, 1),
                                   advance(ann, self.ann_sites, start, index, self.snn.time_steps))
            yield tuple(unpacked(state) for state in self.states[number])

    @torch.no_grad()
    def _advance_check(self, index: int) -> None:
        if self.check_states is None:
            self.check_states = [(State(images), labels) for images, labels in self.check]
        for number, (state, labels) in enumerate(self.check_states):
            self.check_states[number] = (advance(state, self.snn_sites, self.check_position, index, 1), labels)
        self.check_position = index

    @torch.no_grad()
    def _accuracy(self, index: int) -> float:
        """Return the accuracy of the spiking network on the check images in percent, run from site `index`."""
        hits = total = 0
        deployed = deploy(self.snn) if self.config.compile else None
        with quantized_once(self.snn):
            for packed, labels in self.bar(self.check_states, f"{self.snn_sites[index].name}, check"):
                if deployed is None:
                    logits = self.snn.readout(run(self.snn_sites[index:], unpacked(packed)).x)
                else:
                    logits = deployed.finish(index, packed.x, packed.residual)
                hits += (logits.argmax(1) == labels).sum().item()
                total += len(labels)
        return 100 * hits / max(total, 1)


def unit_loss(unit: Unit, state: State, target: Tensor, time_steps: int) -> Tensor:
    """Return the squared error of a spiking unit's mean output, with the gradient of the unit as ANN layer.

    Args:
        unit: a unit with a neuron.
        state: spikes in front of it [T·B, ...], with the residual where the unit joins one.
        target: the ANN's output at this site [B, ...].
        time_steps: T.
    """
    with torch.no_grad():
        spike_rate = mean_over_time(unit(state.x, state.residual), time_steps)
    residual = None if state.residual is None else mean_over_time(state.residual, time_steps)
    return F.mse_loss(unit_rate(unit, mean_over_time(state.x, time_steps), residual, spike_rate), target)


def _snapshot(unit: Unit, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Return copies: on a CPU state dicts alias the live tensors."""
    return deepcopy(unit.state_dict()), deepcopy(optimizer.state_dict())
