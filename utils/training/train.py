"""A training run: what main.py and dali_main.py do between their flags and their result."""

import argparse
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import models
from models import Network
from quant import FLOAT_BITS, calibrate_, quantize_, requantize_

from .. import cli, script
from ..checkpoints.checkpoint import BEST, LAST, network_state, read_checkpoint, restore_network
from ..checkpoints.importer import reset_head_
from ..checkpoints.rundir import RunDirectory, plain, refuse_occupied
from ..checkpoints.torchvision_weights import download
from ..data.splits import Data, Loader
from ..distributed import processes
from ..errors import UserError
from . import loading
from .engine import MILESTONES, epoch_rate, evaluate, restore_, sgd, train_epoch
from .metrics import log_line
from .step import Step


def initial_network(args: argparse.Namespace, data: Data, train_batches: Loader, device: torch.device) -> Network:
    """Return the network to train: fresh, or from --init or TorchVision and, where bits changed, fitted to training images."""
    if args.init is None and not args.pretrained:
        network = models.build(args.arch, args.dataset, data.classes)
        return loading.place(quantize_(network, args.bit, args.weight_bit), args, device)
    source = args.init or f"TorchVision's {args.arch}"
    contents = read_checkpoint(args.init) if args.init else processes.once_per_node(partial(download, args.arch), data.place)
    network = restore_network(contents, source, args.arch, args.init_bit or published_bit(contents, args), args.dataset)
    if network.trainable_start and network.num_classes != data.classes:
        print(f"{source} has {network.num_classes} classes, the data set {data.classes}: the last layer starts afresh")
        reset_head_(network, data.classes)
    data.check(network, source)
    fits = (network.bit, network.weight_bit) == (args.bit, args.weight_bit) and not network.trainable_start
    try:
        network = loading.place(requantize_(network, args.bit, args.weight_bit), args, device)
    except ValueError as error:
        raise UserError(f"--init {source}: {error}") from error
    if not fits:
        fit(network, args, data, train_batches)
    return network


def published_bit(contents: dict[str, Any], args: argparse.Namespace) -> int | None:
    """Return --bit where `contents` are a published quantized network, which does not say its own; else None."""
    state = contents.get("state_dict", contents)
    known = isinstance(state, dict) and any(str(key).endswith("act_alpha") for key in state)
    if "format" in contents or not known:
        return None
    print(f"{args.init} does not say its bits and is taken for a {args.bit}-bit network; --init-bit says otherwise")
    return args.bit


def fit(network: Network, args: argparse.Namespace, data: Data, train_batches: Loader) -> None:
    """Fit clips, BN statistics and thresholds to augmented training images; print the accuracy before and after."""
    check = data.batches(train=True, limit=cli.CHECK_IMAGES)
    before = evaluate(network, check, args.amp, args.limit, "before fitting").top1
    images = train_batches.first(min(data.fit_images, (args.limit or data.fit_images) * args.batch_size))
    calibrate_(network, images)
    processes.agree_(network)
    network.trainable_start = False
    after = evaluate(network, check, args.amp, args.limit, "after fitting")
    print(f"fitted to {len(images)} training images: accuracy on {after.count} training images {before:.2f} -> {after.top1:.2f} %")


def resumed_state(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return the contents of the checkpoint that --resume names; empty without it."""
    if args.resume is None:
        return {}
    file = resumed_file(args, path)
    state = read_checkpoint(file)
    if file.parent.resolve() != path.resolve() or not {"optimizer", "rng", "args"} <= state.keys():
        raise UserError(f"--resume {file}: this is no checkpoint of the run in {path}; a new run starts from it with --init {file}")
    check_history(state, file)
    if args.weight_bit not in (None, state["weight_bit"]):
        raise UserError(f"--weight-bit {args.weight_bit}: the run in {path} has {state['weight_bit'] or 'that of the recipe'}")
    if args.start_epoch not in (None, next_epoch(state)):
        raise UserError(f"--start-epoch {args.start_epoch}: the run in {path} goes on with epoch {next_epoch(state)}, no other "
                        "fits its log and its best checkpoint; leave --start-epoch out")
    return state


def resumed_file(args: argparse.Namespace, path: Path) -> Path:
    """Return the checkpoint with which a run in a directory goes on."""
    return path / LAST if args.resume == Path() else args.resume


def next_epoch(state: dict[str, Any]) -> int:
    """Return the epoch, from 0, that follows a checkpoint."""
    return state["history"][-1]["epoch"] + 1 if state["history"] else state["args"].get("start_epoch") or 0


def check_history(state: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint's log and arguments are what a run has written, epoch by epoch."""
    history, args = state.get("history"), state["args"]
    whole = isinstance(args, dict) and isinstance(history, list) and all(
        isinstance(line, dict) and isinstance(line.get("epoch"), int) and isinstance(line.get("test_top1"), float)
        for line in history)
    if not whole or any(later["epoch"] != line["epoch"] + 1 for line, later in pairwise(history)):
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or --resume {file.with_name(BEST)}")


def restore_run(state: dict[str, Any], optimizer: torch.optim.Optimizer, args: argparse.Namespace, file: Path) -> None:
    """Take over the optimizer's and the random generator's state of a checkpoint; say which flags are new."""
    try:
        restore_(optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"checkpoint {file} cannot be resumed: {error}; start anew with --init {file.with_name(BEST)}") from error
    script.report_changes(args, state["args"])


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train for the epochs that are left, saving each; return best and last line of the log and the directory."""
    path = script.run_path(args)
    processes.check_everywhere(path / LAST)
    script.go_on_after_restart(args, path)
    state = resumed_state(args, path)
    refuse_occupied(path, bool(state), args.overwrite)
    data = Data(args, device)
    train_batches, test_batches = data.batches(train=True, augment=True), data.batches(train=False)
    if state:
        file = resumed_file(args, path)
        network = restore_network(state, file, args.arch, args.bit, args.dataset)
        network = loading.place(data.check(network, file), args, device)
    else:
        network = initial_network(args, data, train_batches, device)
    optimizer = sgd(network, args.lr, args.momentum, args.wd)
    if state:
        restore_run(state, optimizer, args, file)
    first = next_epoch(state) if state else args.start_epoch or 0
    history = list(state.get("history", []))
    step = Step(processes.parallel(network), optimizer, args.amp, compile=args.compile)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)

    def save(is_best: bool) -> None:
        contents = network_state(network) | {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "args": plain(args)}
        run.save(contents, history, is_best)

    if state:
        run.log(history)
    else:
        save(is_best=False)  # so that a run that is killed in its first epoch can be resumed
    for epoch in range(first, args.epochs):
        history.append(train_one(epoch, args, step, network, train_batches, test_batches))
        save(is_best=best_of(history) is history[-1])
    best, last = best_of(history), history[-1]
    print(f"{path}: best epoch {best['epoch'] + 1} with {best['test_top1']:.2f} % (chosen on the test set), "
          f"last epoch {last['epoch'] + 1} with {last['test_top1']:.2f} %")
    return {"best": best, "last": last, "directory": path}


def train_one(epoch: int, args: argparse.Namespace, step: Step, network: Network, train_batches: Loader,
              test_batches: Loader) -> dict[str, Any]:
    """Train for one epoch, evaluate on the test set, print both; return the line of the log."""
    began = time.monotonic()
    rate = epoch_rate(args.lr, args.lr_schedule, epoch, args.epochs, MILESTONES[models.family(args.dataset)])
    train_batches.set_epoch(epoch)
    name = f"epoch {epoch + 1}/{args.epochs}"
    scores = train_epoch(step, train_batches, rate, args.print_freq, args.limit, name, args.accum)
    processes.average_buffers_(network)
    tested = evaluate(network, test_batches, args.amp, args.limit)
    line = log_line(epoch, rate(0), scores, tested, time.monotonic() - began)
    print(f"{name}: train loss {scores.loss:.3f}, train {scores.top1:.2f} %, test {tested.top1:.2f} %, {line['seconds']:.0f} s",
          flush=True)
    return line


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first line of the log with the highest accuracy on the test set."""
    return max(history, key=lambda line: line["test_top1"])


def test(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Evaluate a network on the test set and print its scores."""
    data = Data(args, device)
    network = loading.place(loading.load_usable(args, data)[0], args, device)
    if args.weight_bit not in (None, network.weight_bit):
        raise UserError(f"--weight-bit {args.weight_bit}: the network has {network.weight_bit or 'that of the recipe'}")
    scores = evaluate(network, data.batches(train=False), args.amp, args.limit)
    print(f"{args.arch}, {args.bit} bits, {args.dataset}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, "
          f"loss {scores.loss:.4f} on {scores.count} test images")
    return {"scores": scores}


def check(args: argparse.Namespace) -> argparse.Namespace:
    """Check the training flags against each other."""
    args.epochs = 1 if args.test else args.epochs
    if args.test and (args.resume is not None or args.start_epoch):
        raise UserError("-t and --prof run a few batches from the start: leave --resume and --start-epoch out")
    if args.bit == FLOAT_BITS and args.weight_bit not in (None, FLOAT_BITS):
        raise UserError(f"--weight-bit {args.weight_bit}: quantized weights need quantized activations, --bit 2 to 8")
    if args.evaluate and args.resume is not None:
        raise UserError("-e evaluates --init, or the run's best checkpoint: leave --resume out, or name its FILE with --init")
    if args.init_bit and not args.init:
        raise UserError(f"--init-bit {args.init_bit}: says the bits of a published --init FILE; name it, or leave --init-bit out")
    if (args.start_epoch or 0) >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch}: nothing is left of --epochs {args.epochs}, counted from 0")
    args.overwrite = args.overwrite or args.test
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate with -e, on the device and with the processes that there are."""
    with script.session(args) as device, script.profiled(args):
        return test(args, device) if args.evaluate else train(args, device)
