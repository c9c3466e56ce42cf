"""The methods of snn_ft.py: layer by layer, as a whole, and through time."""

import sys
import time
from dataclasses import asdict, fields
from functools import partial
from types import MappingProxyType

import torch

from snn_layers import (
    FinetuneConfig,
    RateNetwork,
    ThroughTime,
    TimeConfig,
    TunedUnit,
    UnitProgress,
    finetune,
    refuse_norms,
    refuse_shared_weights,
    stored_bytes,
)

from ..checkpoints.resume import restore_, taking_over
from ..distributed.processes import agree_, average_, average_buffers_, parallel
from ..errors import UserError
from ..settings import Settings
from . import loading
from .engine import epoch_rate, evaluate, progress_bar, sgd, train_epoch
from .metrics import Scores
from .session import Session
from .step import Step, autocast

GIGABYTE = 2**30
SETTLING = 512  # images for the first BN statistics of spikes
HARM = 3.0  # points; both networks know the check images, so that a small fall does no harm


def free_memory(device: torch.device) -> float:
    """Return how many GB of a device the kept values may take: half of a GPU's free memory, any number on a CPU."""
    return torch.cuda.mem_get_info(device)[0] / 2 / GIGABYTE if device.type == "cuda" else float("inf")


def layerwise(settings: Settings, session: Session) -> None:
    """Tune unit by unit towards the ANN, saving after each."""
    run, how = settings.run, settings.tuning
    began = time.monotonic()
    count = session.batches.count + session.check.count
    needed = stored_bytes(session.snn, session.ann, session.batches.first(1)) * count / GIGABYTE
    room = 0.0 if how.online else min(how.cache, free_memory(session.batches.device))
    online = needed > room or how.online
    if online and not how.online:
        print(f"the values of {count} images, {session.check.count} of them for checks, take {needed:.1f} GB, for which --cache "
              f"{how.cache:g} and the device have no room: going --online")

    def on_unit(index: int, unit: TunedUnit) -> None:
        session.history.append({"unit": index, **asdict(unit), "seconds": round(time.monotonic() - began, 1)})
        session.progress = None
        session.save()
        print(f"{unit.name}: loss {unit.losses[0]:.3g} -> {unit.losses[-1]:.3g}, accuracy on {session.check.total} "
              f"training images {unit.accuracy_before:.2f} -> {unit.accuracy_after:.2f} %, "
              f"kept {unit.kept_epochs} of {how.epochs}", flush=True)

    def on_epoch(progress: UnitProgress) -> None:
        session.progress = asdict(progress)
        session.save()

    config = FinetuneConfig(how.epochs, how.lr, how.momentum, how.wd, how.force, online,
                            loading.compiles(session.snn, session.batches, run) and not settings.spiking.reference)
    first = session.history[-1]["unit"] + 1 if session.history else 1
    started = UnitProgress(**session.progress) if session.progress else None
    try:
        # The plain layers of --online fire in float32: bfloat16 has too few bits for their sums.
        with autocast(session.batches.device, run.amp and not online, cache=False):
            bar = partial(progress_bar, every=run.print_freq)
            finetune(session.snn, session.ann, session.batches, session.check, config, first, on_unit, bar, average_,
                     on_epoch, started)
    except ValueError as error:
        raise UserError(f"{error}: lower --lr; --resume goes on after the last epoch that was saved") from error


def globally(settings: Settings, session: Session) -> None:
    """Train the whole network, spikes forward and rates backward; see `as_a_whole`."""
    compile = loading.compiles(session.snn, session.batches, settings.run)
    as_a_whole(settings, session, RateNetwork(session.snn, not settings.spiking.reference, compile))


def through_time(settings: Settings, session: Session) -> None:
    """Train the whole network, unrolled over its time steps; see `as_a_whole`. The network gets plain neurons again."""
    network = ThroughTime(session.snn, TimeConfig(settings.tuning.norm, settings.tuning.surrogate))
    if not session.history:
        network.settle_(session.batches.first(SETTLING))
        agree_(session.snn)
    as_a_whole(settings, session, network)
    network.finished()


def as_a_whole(settings: Settings, session: Session, trained: RateNetwork | ThroughTime) -> None:
    """Train a network around `session.snn`, saving after each epoch; the last one counts.

    A line says if the accuracy on the check images fell by more than chance: a learning rate that is too high silences the
    network without an infinite loss.
    """
    run, how = settings.run, settings.tuning

    def checked() -> Scores:
        return evaluate(loading.fast(session.snn, session.check, settings), session.check, run.amp)

    before = session.history[0]["check_before"] if session.history else checked().top1
    network = parallel(trained)
    optimizer = sgd(trained, how.lr, how.momentum, how.wd, nesterov=bool(how.nesterov))
    if session.optimizer_state is not None:
        with taking_over(session.run.file, "--overwrite"):
            restore_(optimizer, session.optimizer_state)
    step = Step(network, optimizer, run.amp, session.ann if how.teacher else None, compile=how.compile)
    for epoch in range(len(session.history), how.epochs):
        began = time.monotonic()
        rate = epoch_rate(how.lr, "cosine", epoch, how.epochs)
        session.batches.set_epoch(epoch)
        name = f"epoch {epoch + 1}/{how.epochs}"
        scores = train_epoch(step, session.batches, rate, run.print_freq, run.limit, name)
        if how.method == "through-time":  # the others leave BN statistics as they are
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
        print(f"tuning lowered the accuracy on training images, {before:.2f} -> {session.history[-1]['check_top1']:.2f} %: "
              "lower --lr, or use the network as it was", file=sys.stderr)


def check(settings: Settings, session: Session) -> None:
    """Raise UserError if the method cannot tune the network, or cannot go on, before anything is measured or written."""
    how, file = settings.tuning, session.run.file
    done = session.history and (session.history[-1]["unit"] + 1 == len(session.snn.graph.units) if how.method == "layerwise"
                                else len(session.history) >= how.epochs)
    late = [name for name in session.run.changed if name in {field.name for field in fields(how)}]
    if done and late:
        flag = late[0].replace("_", "-")
        raise UserError(f"--{flag}: the run in {session.run.path} is finished, so that it changes nothing; --overwrite tunes anew")
    if session.history and not done and how.method != "layerwise" and session.optimizer_state is None:
        raise UserError(f"--resume: {file} has no momenta any more, as a lightened file: --overwrite tunes anew")
    try:
        if how.method == "layerwise":
            refuse_shared_weights(session.snn)
        if how.method == "through-time" and how.norm != "frozen":
            refuse_norms(session.snn)
    except ValueError as error:
        raise UserError(str(error)) from error


METHODS = MappingProxyType({"layerwise": layerwise, "global": globally, "through-time": through_time})
