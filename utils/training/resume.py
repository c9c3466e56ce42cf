"""What a training that goes on must agree with, and what it takes over from its checkpoint."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from models import Network

from ..checkpoints.checkpoint import BEST, recorded
from ..checkpoints.rundir import RunDirectory
from ..errors import UserError
from ..settings import Settings
from .engine import restore_


def next_epoch(state: dict[str, Any]) -> int:
    """Return the epoch, from 0, that follows a checkpoint."""
    return state["history"][-1]["epoch"] + 1 if state["history"] else recorded(state).get("start_epoch") or 0


def check_state(state: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint's log and settings are what a run has written, epoch by epoch."""
    if not {"optimizer", "rng", "args"} <= state.keys():
        raise UserError(f"--resume {file}: this is no checkpoint of a training; a new run starts from it with --init {file}")
    history = state.get("history")
    whole = isinstance(state["args"], dict) and isinstance(history, list) and all(
        isinstance(line, dict) and isinstance(line.get("epoch"), int) and isinstance(line.get("test_top1"), float)
        for line in history)
    if not whole or any(later["epoch"] != line["epoch"] + 1 for line, later in pairwise(history)):
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or --resume {file.with_name(BEST)}")


def check_same_run(settings: Settings, state: dict[str, Any], run: RunDirectory) -> None:
    """Raise UserError where the flags ask for what a run that goes on cannot have."""
    how = settings.training
    if how.weight_bit not in (None, state["weight_bit"]):
        raise UserError(f"--weight-bit {how.weight_bit}: the run in {run.path} has {state['weight_bit'] or 'that of the recipe'}")
    if how.start_epoch not in (None, next_epoch(state)) and not run.restarted:
        raise UserError(f"--start-epoch {how.start_epoch}: the run in {run.path} goes on with epoch {next_epoch(state)}, no other "
                        "fits its log and its best checkpoint; leave --start-epoch out")


def restore_state(state: dict[str, Any], optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Take over the optimizer's and the random generator's state of a checkpoint."""
    try:
        restore_(optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"checkpoint {file} cannot be resumed: {error}; start anew with --init {file.with_name(BEST)}") from error


def restore_trained_(network: Network, state: dict[str, Any], file: Path) -> None:
    """Give the network that is trained, in place, the weights that a checkpoint holds beside their average."""
    try:
        network.load_state_dict(state["trained"])
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {file} does not hold the weights beside their average: the run had no --ema; leave it "
                        "out") from error
