"""A training or a tuning that goes on: checks of its checkpoint, and the state that it takes over."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Network
from quant import thresholds
from snn_layers import HALF, UnitProgress

from ..errors import UserError
from ..settings import Settings
from .checkpoint import BEST, recorded, tunings
from .rundir import RunDirectory


def next_epoch(contents: dict[str, Any]) -> int:
    """Return the epoch, from 0, that follows a checkpoint."""
    return contents["history"][-1]["epoch"] + 1 if contents["history"] else recorded(contents).get("start_epoch") or 0


def check_training(contents: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint has the log and settings of a training, epoch by epoch."""
    if not {"optimizer", "rng", "args"} <= contents.keys():
        raise UserError(f"--resume {file}: this is no checkpoint of a training; a new run starts from it with --init {file}")
    history = contents.get("history")
    whole = isinstance(contents["args"], dict) and isinstance(history, list) and all(
        isinstance(line, dict) and isinstance(line.get("epoch"), int) and isinstance(line.get("test_top1"), float)
        for line in history)
    if not whole or any(later["epoch"] != line["epoch"] + 1 for line, later in pairwise(history)):
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or --resume {file.with_name(BEST)}")


def check_same_run(settings: Settings, contents: dict[str, Any], run: RunDirectory) -> None:
    """Raise UserError if the flags exclude going on with the run."""
    how = settings.training
    if how.weight_bit not in (None, contents["weight_bit"]):
        found = contents["weight_bit"] or "that of the recipe"
        raise UserError(f"--weight-bit {how.weight_bit}: the run in {run.path} has {found}")
    if how.start_epoch not in (None, next_epoch(contents)) and not run.restarted:
        raise UserError(f"--start-epoch {how.start_epoch}: the run in {run.path} goes on with epoch {next_epoch(contents)}, no "
                        "other fits its log and its best checkpoint; leave --start-epoch out")


def restore_(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer its saved momenta, in place, by the names of their parameters; its rates and decays stay.

    Checkpoints of earlier versions have no names: the parameters are in the same order.

    Raises:
        ValueError: these are not momenta of its parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    momenta = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(momenta, dict) or not momenta.keys() <= set(range(len(parameters))):
        raise ValueError("holds no state of an optimizer of this network")
    ours, theirs = names_of(optimizer.param_groups), names_of(saved.get("param_groups", ()))
    if theirs:
        if sorted(ours) != sorted(theirs):
            raise ValueError("holds momenta of other parameters")
        momenta = {ours.index(theirs[index]): entry for index, entry in momenta.items()}
    for index, entry in momenta.items():
        momentum = entry.get("momentum_buffer") if isinstance(entry, dict) else None
        if momentum is not None and not (isinstance(momentum, Tensor) and momentum.shape == parameters[index].shape
                                         and momentum.isfinite().all()):
            raise ValueError(f"holds a momentum {index} that does not fit its parameter")
    # The fused update reads both in memory order: a momentum must have the strides of its parameter.
    fitted = {index: entry if entry.get("momentum_buffer") is None else
              {**entry, "momentum_buffer": torch.empty_like(parameters[index]).copy_(entry["momentum_buffer"])}
              for index, entry in momenta.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": fitted})


def names_of(groups: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of an optimizer's parameters, in the order of its momenta; none in earlier versions."""
    return [name for group in groups for name in group.get("param_names", ())]


def random_state() -> dict[str, Tensor]:
    """Return the states of the random generators, on which dropout depends: of the CPU and of the GPU in use."""
    on_gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def restore_random(state: dict[str, Tensor] | Tensor) -> None:
    """Take over the states of the random generators; earlier versions saved that of the CPU alone.

    Raises:
        TypeError, RuntimeError: these are no such states.
    """
    states = {"cpu": state} if isinstance(state, Tensor) else state
    if not isinstance(states, dict) or "cpu" not in states:
        raise TypeError("holds no state of a random generator")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def restore_state(contents: dict[str, Any], optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Take over the momenta and the random generators from a checkpoint."""
    with taking_over(file, f"--init {file.with_name(BEST)}"):
        restore_(optimizer, contents["optimizer"])
        restore_random(contents["rng"])


@contextmanager
def taking_over(file: Path, anew: str) -> Iterator[None]:
    """Turn errors of a state that does not fit into a UserError; `anew` is the flag that starts afresh."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"checkpoint {file} cannot be resumed: {error}; start anew with {anew}") from error


def restore_trained_(network: Network, contents: dict[str, Any], file: Path) -> None:
    """Load, in place, the trained weights that a checkpoint holds beside their average."""
    try:
        network.load_state_dict(contents["trained"])
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {file} does not hold the weights beside their average: the run had no --ema; leave it "
                        "out") from error


def check_tuning(contents: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint has the log, settings and progress of a tuning."""
    if "finetune" not in contents:
        raise UserError(f"--resume: {file} is no checkpoint of a tuning")
    summary, history, progress = contents["finetune"], contents.get("history"), contents.get("progress")
    whole = (isinstance(summary, dict) and {"neuron", "delay", "ann", "before"} <= summary.keys() and isinstance(history, list)
             and all(isinstance(line, dict) and ("unit" in line or {"epoch", "check_before", "check_top1"} <= line.keys())
                     for line in history)
             and "init" in recorded(contents)
             and (progress is None or (isinstance(progress, dict) and progress.keys() == {f.name for f in fields(UnitProgress)})))
    if not whole:
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or start anew with --overwrite")


def check_same_neurons(settings: Settings, contents: dict[str, Any], path: Path) -> None:
    """Raise UserError if the flags ask for other neurons or BN than those of the run."""
    how, delay, start = settings.spiking, contents["finetune"]["delay"], contents["finetune"].get("start", HALF)
    if how.delay != delay:
        raise UserError(f"--delay {how.delay}: the run in {path} has delay {delay}")
    if how.start != start:
        raise UserError(f"--start {how.start:g}: the run in {path} starts at {start:g} thresholds")
    if how.calibrate != (count := recorded(contents).get("calibrate") or 0):
        raise UserError(f"--calibrate {how.calibrate}: the run in {path} was calibrated on {count} images")
    if settings.tuning.norm != (norm := recorded(contents).get("norm")):
        raise UserError(f"--norm {settings.tuning.norm}: the run in {path} has --norm {norm}")


def same_frozen(tuned: Network, ann: Network, path: Path, method: str) -> None:
    """Raise UserError unless a tuned network was made from this ANN, see `unlike`."""
    if (name := unlike(tuned, ann, method == "through-time")) is not None:
        raise UserError(f"--init: the run in {path} tunes another network, {name} differs; leave --init out, or name the "
                        "file that the run was started with")


def no_start(path: Path, tuned: Network, ann: Network) -> str | None:
    """Return why a network is not the one that the tuned network in `path` was made from; None if it is."""
    found, start = tunings(path)
    differs = unlike(tuned, ann, any(recorded(contents).get("method") == "through-time" for contents in found))
    return None if differs is None else f"{start} is no longer the network that {path} was tuned from, {differs} differs"


def unlike(tuned: Network, ann: Network, learned: bool) -> str | None:
    """Return the name of a threshold or a BN statistic, which tuning never changes, that differs; None without one.

    Args:
        learned: it was tuned through time, which learns the BN statistics of the spikes.
    """
    ours, fixed = tuned.state_dict(), thresholds(ann)
    frozen = () if learned else ("running_mean", "running_var")
    return next((name for name, tensor in ann.state_dict().items()
                 if (name in fixed or name.endswith(frozen)) and not torch.equal(tensor.cpu(), ours[name].cpu())), None)
