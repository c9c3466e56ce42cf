"""A training: its network, fresh or resumed, and its epochs."""

import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import models
from models import Network
from quant import fit_, normalised, quantize_, requantize_
from snn_layers import norm_steps

from ..checkpoints.checkpoint import network_state, read_checkpoint, restore_network
from ..checkpoints.foreign import download, reset_head_, state_of
from ..checkpoints.leaving import check_export, export
from ..checkpoints.resume import check_same_run, next_epoch, random_state, restore_state, restore_trained_
from ..checkpoints.rundir import RunDirectory, plain
from ..config import CHECK_IMAGES
from ..data.batches import Batches
from ..data.splits import Data
from ..distributed import processes
from ..errors import UserError
from ..settings import Settings
from . import loading
from .engine import MILESTONES, epoch_rate, evaluate, sgd, train_epoch
from .guards import inner
from .metrics import log_line
from .step import Step


def initial_network(settings: Settings, data: Data) -> Network:
    """Return the network to train: fresh, or from --init or TorchVision and, if its bits change, fitted to training images."""
    run, how, dataset = settings.run, settings.training, settings.data.dataset
    if run.init is None and not how.pretrained:
        network = built(run.arch, dataset, data)
        return data.placed(quantize_(network, run.bit, how.weight_bit))
    source = run.init or f"TorchVision's {run.arch}"
    contents = read_checkpoint(run.init) if run.init else processes.once_per_node(partial(download, run.arch), data.place)
    network = restore_network(contents, source, run.arch, how.init_bit or published_bit(contents, source, run.bit), dataset)
    if network.num_classes != data.classes and (network.trainable_start or "format" not in contents):
        reset_head_(network, data.classes, source)
    network = data.check(network, source)
    fits = (network.bit, network.weight_bit) == (run.bit, how.weight_bit) and not network.trainable_start
    before = normalised(network)
    if norm_steps(network) is not None:
        raise UserError(f"--init {source}: the network has BN of each time step, with which an ANN cannot train; start from the "
                        "network that it was tuned from")
    try:
        network = data.placed(requantize_(network, run.bit, how.weight_bit))
    except ValueError as error:
        raise UserError(f"--init {source}: {error}") from error
    if not fits:
        fit(network, settings, data, data.batches(train=True, augment=True), before and not normalised(network))
    return network


def built(arch: str, dataset: str, data: Data) -> Network:
    """Return a fresh network of the data set's classes.

    Raises:
        UserError: it cannot be built or converted, or has another number of outputs.
    """
    try:
        return data.fits(models.build(arch, dataset, data.classes))
    except ValueError as error:
        raise UserError(f"--arch {arch}: {error}") from error


def published_bit(contents: dict[str, Any], source: object, bit: int) -> int | None:
    """Return `bit` if `contents` are a published quantized network, which does not say its own bits; else None."""
    state = state_of(contents)
    known = isinstance(state, dict) and any(str(key).endswith("act_alpha") for key in state)
    if "format" in contents or not known:
        return None
    print(f"{source} does not say its bits and is taken for a {bit}-bit network; --init-bit says otherwise")
    return bit


def fit(network: Network, settings: Settings, data: Data, train_batches: Batches, rescaled: bool) -> None:
    """Fit clips, BN statistics and thresholds to augmented training images, see `fit_`; print the accuracy before and after."""
    amp, limit = settings.run.amp, settings.run.limit
    check = data.batches(train=True, limit=CHECK_IMAGES)
    before = evaluate(network, check, amp, limit, "before fitting").top1
    images = train_batches.first(min(data.fit_images, (limit or data.fit_images) * settings.data.batch_size))
    fit_(network, images, rescaled)
    processes.agree_(network)
    network.facts = replace(network.facts, trainable_start=False)
    after = evaluate(network, check, amp, limit, "after fitting")
    print(f"fitted to {len(images)} training images: accuracy on {after.count} training images {before:.2f} -> {after.top1:.2f} %")


class Trainer:
    """A network in training: fresh, from --init, or resumed.

    Attributes:
        history: the log, a line an epoch.
        epochs: numbers of the remaining epochs, from 0.

    Raises:
        UserError: the flags exclude going on with the run, or its checkpoint does not fit.
    """

    def __init__(self, settings: Settings, data: Data, run: RunDirectory):
        self.settings, how, before = settings, settings.training, run.contents
        if before:
            check_same_run(settings, before, run)
            network = restore_network(before, run.file, settings.run.arch, settings.run.bit, settings.data.dataset)
            self.network = data.placed(data.check(network, run.file))
        else:
            self.network = initial_network(settings, data)
        data.described(self.network)
        self.batches, self.test_batches = data.batches(train=True, augment=True), data.batches(train=False)
        self.average = deepcopy(self.network).requires_grad_(False) if how.ema else None
        if how.ema and before:
            restore_trained_(self.network, before, run.file)
        self.optimizer = sgd(self.network, how.lr, how.momentum, how.wd, nesterov=how.nesterov, threshold_lr=how.threshold_lr,
                             clip_lr=how.clip_lr)
        teacher = loading.load_teacher(settings, data) if how.teacher else None  # it draws random weights first
        if before:
            restore_state(before, self.optimizer, run.file)
        self.history: list[dict[str, Any]] = list(before.get("history", []))
        self.epochs = range(next_epoch(before) if before else how.start_epoch or 0, how.epochs)
        if not (self.history or self.epochs):
            raise UserError(f"--epochs {how.epochs}: the run starts with epoch {self.epochs.start}, so that nothing is left")
        self.step = Step(processes.parallel(self.network), self.optimizer, settings.run.amp, teacher, how.label_smoothing,
                         self.average, how.ema, how.compile)

    def train(self, epoch: int) -> None:
        """Train for one epoch and evaluate; adds a line to the log."""
        self.history.append(train_one(epoch, self.settings, self.step, self.result_network, self.batches, self.test_batches))

    @property
    def result_network(self) -> Network:
        """Return the network that is evaluated and saved: the average, if there is one."""
        return self.network if self.average is None else self.average

    @property
    def improved(self) -> bool:
        """Return whether the last epoch is the best one."""
        return best_of(self.history) is self.history[-1]

    def contents(self) -> dict[str, Any]:
        """Return the contents of a checkpoint, without the log."""
        trained = {} if self.average is None else {"trained": self.network.state_dict()}
        return network_state(self.result_network) | trained | {
            "optimizer": self.optimizer.state_dict(), "rng": random_state(), "args": plain(self.settings)}

    def result(self, path: Path) -> dict[str, Any]:
        """Print and return the best and the last line of the log, and the directory."""
        best, last = best_of(self.history), self.history[-1]
        print(f"{path}: best epoch {best['epoch'] + 1} with {best['test_top1']:.2f} % (chosen on the test set), "
              f"last epoch {last['epoch'] + 1} with {last['test_top1']:.2f} %")
        return {"best": best, "last": last, "directory": path}


def train_one(epoch: int, settings: Settings, step: Step, network: Network, train_batches: Batches,
              test_batches: Batches) -> dict[str, Any]:
    """Train for one epoch, evaluate on the test set, print both; return the line of the log.

    Args:
        network: the one to evaluate.
    """
    run, how = settings.run, settings.training
    began = time.monotonic()
    rate = epoch_rate(how.lr, how.lr_schedule, epoch, how.epochs, MILESTONES[models.family(settings.data.dataset)],
                      how.warmup)
    train_batches.set_epoch(epoch)
    name = f"epoch {epoch + 1}/{how.epochs}"
    scores = train_epoch(step, train_batches, rate, run.print_freq, run.limit, name, how.accum)
    for module in dict.fromkeys((inner(step.network), network)):  # two, if an average is evaluated
        processes.average_buffers_(module)
    tested = evaluate(network, test_batches, run.amp, run.limit)
    line = log_line(epoch, rate(0), scores, tested, time.monotonic() - began)
    print(f"{name}: train loss {scores.loss:.3f}, train {scores.top1:.2f} %, test {tested.top1:.2f} %, {line['seconds']:.0f} s",
          flush=True)
    return line


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first line of the log with the highest accuracy on the test set."""
    return max(history, key=lambda line: line["test_top1"])


def test(settings: Settings, data: Data) -> dict[str, Any]:
    """Evaluate a network on the test set and print its scores."""
    run, weight_bit = settings.run, settings.training.weight_bit
    check_export(run.export)
    network = data.placed(loading.load_usable(run, data)[0])
    if weight_bit not in (None, network.weight_bit):
        raise UserError(f"--weight-bit {weight_bit}: the network has {network.weight_bit or 'that of the recipe'}")
    batches = data.batches(train=False)
    scores = evaluate(network, batches, run.amp, run.limit)
    print(f"{run.arch}, {run.bit} bits, {settings.data.dataset}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, "
          f"loss {scores.loss:.4f} on {scores.count} test images")
    if run.export:
        export(network, run.export, batches.size, data.normalisation(), scores.top1, f"{scores.count} test images")
    return {"scores": scores}
