"""Layer-wise tuning: each unit of a spiking network learns the output of the same unit of its quantized ANN."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Network, Part, Values
from quant import fault, quantized_once, thresholds

from ..convert import own_parameters_
from ..step_norm import refuse_steps
from .rate import unit_rate
from .unit_data import Average, Bar, Batches, UnitData


@dataclass(frozen=True)
class FinetuneConfig:
    """How a unit is tuned.

    Attributes:
        epochs: passes over the batches, per unit.
        lr, momentum, weight_decay: of SGD.
        force: keep the state after each epoch; otherwise only if the accuracy on the check images rose.
        online: draw fresh batches in each pass and run the network up to the unit (published; time O(L²) in the number of
            units). Otherwise the batches are drawn once and their values advance unit by unit: time O(L), memory one byte per
            spike and ANN activation.
        compile: see `deploy`; for the kept spikes and the check images.
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
    """The result of tuning one unit: accuracies in percent on the check images, losses before and in each epoch."""

    name: str
    accuracy_before: float
    accuracy_after: float
    kept_epochs: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class UnitProgress:
    """How far a unit is between two epochs, as plain values to be saved beside the weights last kept.

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
             bar: Bar | None = None, average_: Average | None = None,
             on_epoch: Callable[[UnitProgress], None] | None = None, started: UnitProgress | None = None) -> list[TunedUnit]:
    """Tune the hidden units of `snn`, in place, in forward order; never a unit that sees only images, never the readout.

    For a unit with spike input S: x̄ = mean_T S, ȳ = mean_T of its spike output, o = the unit as ANN layer on x̄ with BN in
    eval mode, out = o + (ȳ - o).detach(), loss = MSE(out, output of the ANN's unit). Trained are weights, biases,
    weight clips, BN scale and shift of all layers between the unit and its sources; thresholds and BN statistics stay.

    Args:
        snn: a spiking network; it may share its parameters with `ann`, which is copied first.
        ann: the quantized network it came from: the target.
        batches: (images [B, 3, H, W], labels) of training images; the labels are not used.
        check: training images, not augmented, on which the accuracy decides; never the test set.
        first: index of the unit to start with, to go on after an interruption.
        on_unit: called with (index, result) after each unit.
        bar: called with (items, name), returns the items; shows the progress of a pass.
        average_: averages tensors, in place, over processes that tune on parts of the batches: the gradients of the unit, and
            counts. Nothing else is exchanged, and all processes keep the same weights.
        on_epoch: called after each epoch of a unit but its last.
        started: how far the first unit is; its remaining epochs follow.

    Returns:
        one result per tuned unit.

    Raises:
        ValueError: two units share a weight, the loss is not finite (names the weight, or unit and batch), or the network has BN of
            each time step.

    Source: Fast-SNN (Hu et al., TPAMI 2023), section 5.
    """
    config = config or FinetuneConfig()
    refuse_steps(snn)
    refuse_shared_weights(snn)
    ann = deepcopy(ann).eval().requires_grad_(False)
    own_parameters_(snn.eval())
    data = UnitData(snn, ann, batches, check, config.epochs, config.online, config.compile, bar or (lambda items, name: items),
                    average_ or (lambda tensors: None))
    tuner, results = _Tuner(data, config), []
    with quantized_once(ann):
        for index, unit in enumerate(snn.graph.units):
            if index < first or unit.encodes or not trained_parameters(snn.excerpt(unit)):
                continue
            results.append(tuner.tune(index, on_epoch, None if results else started))
            if on_unit is not None:
                on_unit(index, results[-1])
    return results


def refuse_shared_weights(snn: Network) -> None:
    """Raise ValueError if two parts call one weight and one of them would be tuned; names the weight.

    A value that several units read is no such weight. Its layers belong to the first unit that reads it and learn there.
    For later units it is an input like any other.
    """
    owner: dict[Tensor, Part] = {}
    for part in snn.graph.parts:
        for node in (*part.nodes, *part.constants):
            weights = snn.layer(node.target).parameters() if node.op == "call_module" else ()
            if node.op == "get_attr" and isinstance(snn.tensor(node.target), nn.Parameter):
                weights = (snn.tensor(node.target),)
            for other in (owner.setdefault(weight, part) for weight in weights):
                if other is not part and any(one.activation is not None and not one.encodes for one in (other, part)):
                    raise ValueError(f"{node.target} is part of {other.name} and of {part.name}, so that neither can be tuned "
                                     "alone: tune the network as a whole (--method global)")


class _Tuner:
    """Tunes one unit after the other on the values that `data` gives."""

    def __init__(self, data: UnitData, config: FinetuneConfig):
        self.data, self.config = data, config
        self.accuracy: float | None = None  # of the network as it is; None before the first measurement

    def tune(self, index: int, on_epoch: Callable[[UnitProgress], None] | None = None,
             started: UnitProgress | None = None) -> TunedUnit:
        """Tune the unit `index`, going on from `started`, and keep the best state."""
        config, name = self.config, self.data.units[index].name
        unit = self.data.snn.excerpt(self.data.units[index])
        optimizer = torch.optim.SGD(trained_parameters(unit), config.lr, config.momentum, weight_decay=config.weight_decay)
        self.data.advance_check(index)
        if started is None:
            before = best = self.data.accuracy(index) if self.accuracy is None else self.accuracy
            kept_epochs, losses = 0, []
        else:
            before, best, kept_epochs, losses = started.before, started.best, started.kept_epochs, list(started.losses)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": started.momenta})
        kept = _snapshot(unit, optimizer)
        for epoch in range(len(losses), config.epochs):
            losses.append(self._epoch(index, epoch, unit, optimizer))
            accuracy = self.data.accuracy(index)
            if config.force or accuracy > best:
                best, kept, kept_epochs = accuracy, _snapshot(unit, optimizer), epoch + 1
            else:
                unit.load_state_dict(kept[0])
                self.data.learned(index)
                optimizer.load_state_dict(deepcopy(kept[1]))  # the optimizer would change the snapshot's momentum
            if on_epoch is not None and epoch + 1 < config.epochs:
                on_epoch(UnitProgress(before, best, kept_epochs, tuple(losses), kept[1]["state"]))
        self.accuracy = best
        return TunedUnit(name, before, best, kept_epochs, tuple(losses))

    def _epoch(self, index: int, epoch: int, unit: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        """Train the unit for one pass; return its mean loss."""
        losses = []
        for means, spike_rate, target in self.data.inputs(index, epoch):
            loss = unit_loss(self.data.snn, self.data.units[index], means, spike_rate, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.data.average_(parameter.grad for parameter in unit.parameters() if parameter.grad is not None)
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).double().mean().item() if losses else 0.0
        found = fault(unit, statistics=False) or (None if math.isfinite(mean) else f"the loss is {mean:g}")
        if found is not None:  # spikes hide NaN: a neuron whose current is NaN is just silent
            raise ValueError(f"{found} after {self.data.name(index, epoch)}")
        self.data.learned(index)
        return mean


def trained_parameters(unit: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a unit's layers but the threshold: weights, biases, weight clips, BN scale and shift."""
    fixed = thresholds(unit)
    return [parameter for name, parameter in unit.named_parameters() if name not in fixed]


def unit_loss(snn: Network, unit: Part, means: Values, spike_rate: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of a spiking unit's mean output ȳ, with the gradient of the unit as ANN layer.

    Args:
        means: x̄ [B, ...] of the values that the unit reads.
        spike_rate: ȳ [B, ...], the mean of the unit's spike output.
        target: the ANN's output at this unit [B, ...].
    """
    return F.mse_loss(unit_rate(snn, unit, means, spike_rate)[0], target)


def _snapshot(unit: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Return copies: on a CPU state dicts alias the live tensors."""
    return deepcopy(unit.state_dict()), deepcopy(optimizer.state_dict())
