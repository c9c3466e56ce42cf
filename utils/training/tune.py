"""A fine-tuning run: the methods of snn_ft.py, between its flags and its result, and what a resumed one must agree with."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import Network
from snn_layers import (
    HALF,
    FinetuneConfig,
    RateNetwork,
    ThroughTime,
    TimeConfig,
    TunedUnit,
    UnitProgress,
    finetune,
    own_parameters_,
    state_bytes,
)

from .. import script
from ..checkpoints.checkpoint import LAST, read_checkpoint
from ..data.splits import Loader
from ..distributed.processes import average_, average_buffers_, parallel
from ..errors import UserError
from . import loading
from .engine import epoch_rate, evaluate, progress_bar, restore_, sgd, train_epoch
from .metrics import Scores
from .step import Step, autocast

GIGABYTE = 2**30
HARM = 3.0  # percent; ANN and network know the check images, so that a small fall is no harm


@dataclass
class Session:
    """What the methods work on: target, network, batches, the log so far, the state within it, `save()`.

    Attributes:
        optimizer_state: global, through time: the optimizer's.
        progress: layerwise: how far the unit is that is tuned, a `UnitProgress` as plain values; None between units.
    """

    ann: Network
    snn: Network
    batches: Loader
    check: Loader
    history: list[dict[str, Any]]
    optimizer_state: dict[str, Any] | None
    progress: dict[str, Any] | None
    save: Callable[[], None]


def layerwise(args: argparse.Namespace, session: Session) -> None:
    """Tune unit by unit towards the ANN, saving after each."""
    began = time.monotonic()
    count = session.batches.count + session.check.count
    needed = state_bytes(session.snn, session.ann, session.batches.first(1)) * count / GIGABYTE
    online = args.online or needed > args.cache
    if online and not args.online:
        print(f"the states of {count} images, {session.check.count} of them for checks, take {needed:.1f} GB of --cache "
              f"{args.cache:g}: going --online")

    def on_unit(index: int, unit: TunedUnit) -> None:
        session.history.append({"unit": index, **asdict(unit), "seconds": round(time.monotonic() - began, 1)})
        session.progress = None
        session.save()
        print(f"{unit.name}: loss {unit.losses[0]:.3g} -> {unit.losses[-1]:.3g}, accuracy on {session.check.total} "
              f"training images {unit.accuracy_before:.2f} -> {unit.accuracy_after:.2f} %, "
              f"kept {unit.kept_epochs} of {args.num_epochs}", flush=True)

    def on_epoch(progress: UnitProgress) -> None:
        session.progress = asdict(progress)
        session.save()

    config = FinetuneConfig(args.num_epochs, args.lr, args.momentum, args.wd, args.force, online,
                            loading.compiles(args, session.snn, session.batches) and not args.reference)
    first = session.history[-1]["unit"] + 1 if session.history else 1
    started = UnitProgress(**session.progress) if session.progress else None
    try:
        # The plain layers of --online fire in float32: bfloat16 has too few bits for their sums.
        with autocast(session.batches.device, args.amp and not online, cache=False):
            bar = partial(progress_bar, every=args.print_freq)
            finetune(session.snn, session.ann, session.batches, session.check, config, first, on_unit, bar, average_,
                     on_epoch, started)
    except ValueError as error:
        raise UserError(f"{error}: lower --lr; --resume goes on behind the last epoch that was saved") from error


def globally(args: argparse.Namespace, session: Session) -> None:
    """Train the whole network, spikes forward and rates backward; see `as_a_whole`."""
    own_parameters_(session.snn)
    as_a_whole(args, session, RateNetwork(session.snn, not args.reference, loading.compiles(args, session.snn, session.batches)))


def through_time(args: argparse.Namespace, session: Session) -> None:
    """Train the whole network, unrolled over its time steps; see `as_a_whole`. The network gets plain neurons again."""
    network = ThroughTime(session.snn, TimeConfig(args.norm, args.surrogate))
    as_a_whole(args, session, network)
    network.finished()


def as_a_whole(args: argparse.Namespace, session: Session, trained: RateNetwork | ThroughTime) -> None:
    """Train a network around `session.snn`, saving after each epoch; the last one counts.

    Says so where the accuracy on the check images fell by more than chance: a learning rate too high silences the network
    without an infinite loss.
    """
    def checked() -> Scores:
        return evaluate(loading.fast(args, session.snn, session.check), session.check, args.amp)

    before = session.history[0]["check_before"] if session.history else checked().top1
    network = parallel(trained)
    optimizer = sgd(network, args.lr, args.momentum, args.wd, nesterov=args.nesterov)
    if session.optimizer_state:
        restore_(optimizer, session.optimizer_state)
    step = Step(network, optimizer, args.amp, session.ann if args.teacher else None)
    for epoch in range(len(session.history), args.num_epochs):
        began = time.monotonic()
        rate = epoch_rate(args.lr, "cosine", epoch, args.num_epochs)
        session.batches.set_epoch(epoch)
        name = f"epoch {epoch + 1}/{args.num_epochs}"
        scores = train_epoch(step, session.batches, rate, args.print_freq, args.limit, name)
        if args.method == "through-time":  # the others leave BN statistics as they are
            average_buffers_(network)
        found = checked()
        seconds = round(time.monotonic() - began, 1)
        session.history.append({"epoch": epoch, "lr": rate(0), "train_loss": scores.loss, "train_top1": scores.top1,
                                "check_before": before, "check_top1": found.top1, "seconds": seconds})
        session.optimizer_state = optimizer.state_dict()
        session.save()
        print(f"{name}: train loss {scores.loss:.3f}, train {scores.top1:.2f} %, accuracy on {found.count} training images "
              f"{before:.2f} -> {found.top1:.2f} %, {seconds:.0f} s", flush=True)
    if session.history[-1]["check_top1"] < before - HARM:
        print(f"fine-tuning lowered the accuracy on training images, {before:.2f} -> {session.history[-1]['check_top1']:.2f} %: "
              "lower --lr, or use the network as it was", file=sys.stderr)


def resumed_state(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return the contents of the run's last checkpoint with --resume, and take over its --init; empty without --resume."""
    if not args.resume:
        return {}
    state = read_checkpoint(path / LAST)
    if "finetune" not in state:
        raise UserError(f"--resume: {path / LAST} is no checkpoint of a fine-tuning run")
    check_tuning(state, path / LAST)
    if args.delay != state["finetune"]["delay"]:
        raise UserError(f"--delay {args.delay}: the run in {path} has delay {state['finetune']['delay']}")
    if args.start != (start := state["finetune"].get("start", HALF)):
        raise UserError(f"--start {args.start:g}: the run in {path} starts at {start:g} thresholds")
    if args.method == "through-time" and args.norm != (norm := state["args"].get("norm")):
        raise UserError(f"--norm {args.norm}: the run in {path} has --norm {norm}")
    if args.init is None and state["args"]["init"] is not None:
        args.init = Path(state["args"]["init"])
    script.report_changes(args, state["args"])
    return state


def check_tuning(state: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint's log, arguments and progress are what a fine-tuning run has written."""
    summary, history, progress = state["finetune"], state.get("history"), state.get("progress")
    whole = (isinstance(summary, dict) and {"neuron", "delay", "ann", "before"} <= summary.keys() and isinstance(history, list)
             and all(isinstance(line, dict) and ("unit" in line or {"epoch", "check_before", "check_top1"} <= line.keys())
                     for line in history)
             and isinstance(state.get("args"), dict) and "init" in state["args"]
             and (progress is None or (isinstance(progress, dict) and progress.keys() == {f.name for f in fields(UnitProgress)})))
    if not whole:
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or start anew with --overwrite")


def same_frozen(tuned: Network, ann: Network, path: Path, method: str) -> None:
    """Raise UserError unless a tuned network has the thresholds and BN statistics of its ANN, which tuning never changes.

    Through time it learns the statistics of the spikes.
    """
    ours = tuned.state_dict()
    frozen = ("threshold",) if method == "through-time" else ("threshold", "running_mean", "running_var")
    for name, tensor in ann.state_dict().items():
        if name.endswith(frozen) and not torch.equal(tensor, ours[name]):
            raise UserError(f"--init: the run in {path} tunes another network, {name} differs; leave --init out, or name the "
                            "file that the run was started with")
