"""Train a float network, or quantize one progressively, on CIFAR-10, CIFAR-100 or digits.

    python main.py --arch alex --bit 32 -id 2 --wd 5e-4
    python main.py --arch alex --bit 4 -id 2 --wd 1e-4 --lr 4e-2 --init result/alex_32bit/model_best.pth.tar
    python main.py --arch alex --bit 4 -e --init result/alex_4bit/model_best.pth.tar

A network of another bit-width given by --init is fitted first: clips, BN statistics and thresholds, on training images.
The best epoch is the one with the highest accuracy on the test set, as in the papers; the last one is reported beside it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import models
from models import Network
from quant import FLOAT_BITS, calibrate_, fuse_, quantize_, requantize_
from utils import cli, script
from utils.checkpoint import LAST, network_state, read_checkpoint, restore_network
from utils.cifar import TensorLoader, load_images
from utils.engine import epoch_rate, evaluate, sgd, train_epoch
from utils.errors import UserError
from utils.rundir import RunDirectory, log_line, plain, refuse_occupied

CALIBRATION_IMAGES = 1024


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_parser(__doc__)
    add, number, count = parser.add_argument, cli.number, cli.count
    add("--epochs", type=count(1, "number of epochs"), default=300, help="length of the run (default: 300)")
    add("--start-epoch", type=count(0, "epoch"), help="epoch to start at, from 0 (default: 0, or where --resume goes on)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"), default=0.1, help="initial value (default: 0.1)")
    add("--lr-schedule", choices=("step", "cosine"), default="step",
        help="step: x0.1 at 1/2 and 3/4 of the run; cosine: to 0 (default: step)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"), default=5e-4, help="of SGD (default: 5e-4)")
    add("--weight-bit", type=cli.bits, help="bits of the hidden weights where they are to differ from the recipe")
    add("--compile", action="store_true", help="compile the quantized activations: faster steps, after half a minute")
    add("-e", "--evaluate", action="store_true", help="evaluate --init (default: the run's best checkpoint) and stop")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="FILE", help="start from this checkpoint, ours or a published one")
    start.add_argument("--resume", nargs="?", type=Path, const=Path(), metavar="FILE",
                       help="go on with an interrupted run: its directory's last checkpoint, or FILE")
    add("--init-bit", type=cli.bits, help="bits of a published quantized --init file (default: --bit)")
    cli.add_training_flags(parser)
    args = cli.resolve(parser.parse_args(argv))
    args.epochs = 1 if args.test else args.epochs
    if args.bit == FLOAT_BITS and args.weight_bit not in (None, FLOAT_BITS):
        raise UserError(f"--weight-bit {args.weight_bit}: quantized weights need quantized activations, --bit 2 to 8")
    if (args.start_epoch or 0) >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch}: nothing is left of --epochs {args.epochs}, counted from 0")
    args.overwrite = args.overwrite or args.test
    return args


def initial_network(args: argparse.Namespace, train_batches: TensorLoader, check: TensorLoader, device: torch.device) -> Network:
    """Return the network to train: fresh, or from --init and, where bits changed, fitted to training images."""
    if args.init is None:
        network = models.build(args.arch, args.dataset)
        return script.place(quantize_(network, args.bit, args.weight_bit), args, device)
    contents = read_checkpoint(args.init)
    network = restore_network(contents, args.init, args.arch, args.init_bit or published_bit(contents, args), args.dataset)
    fits = (network.bit, network.weight_bit) == (args.bit, args.weight_bit) and not network.trainable_start
    try:
        network = script.place(requantize_(network, args.bit, args.weight_bit), args, device)
    except ValueError as error:
        raise UserError(f"--init {args.init}: {error}") from error
    if not fits:
        fit(network, args, train_batches, check)
    return network


def published_bit(contents: dict[str, Any], args: argparse.Namespace) -> int | None:
    """Return --bit where `contents` are a published quantized network, which does not say its own; else None."""
    keys = contents.get("state_dict", contents)
    return args.bit if "format" not in contents and any(key.endswith("act_alpha") for key in keys) else None


def fit(network: Network, args: argparse.Namespace, train_batches: TensorLoader, check: TensorLoader) -> None:
    """Fit clips, BN statistics and thresholds to augmented training images; print the accuracy before and after."""
    before = evaluate(network, check, args.amp, args.limit, "before fitting").top1
    images = train_batches.first(min(CALIBRATION_IMAGES, (args.limit or CALIBRATION_IMAGES) * args.batch_size))
    calibrate_(network, images)
    network.trainable_start = False
    after = evaluate(network, check, args.amp, args.limit, "after fitting")
    print(f"fitted to {len(images)} training images: accuracy on {after.count} training images {before:.2f} -> {after.top1:.2f} %")


def resumed_state(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return the contents of the checkpoint that --resume names; empty without it."""
    if args.resume is None:
        return {}
    file = path / LAST if args.resume == Path() else args.resume
    state = read_checkpoint(file)
    if file.parent.resolve() != path.resolve() or not {"optimizer", "rng", "args"} <= state.keys():
        raise UserError(f"--resume {file}: this is no checkpoint of the run in {path}; a new run starts from it with --init {file}")
    if args.weight_bit not in (None, state["weight_bit"]):
        raise UserError(f"--weight-bit {args.weight_bit}: the run in {path} has {state['weight_bit'] or 'that of the recipe'}")
    return state


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train for the epochs that are left, saving each; return best and last line of the log and the directory."""
    path = script.run_path(args)
    state = resumed_state(args, path)
    refuse_occupied(path, bool(state), args.overwrite)
    train_set, test_set = (load_images(args.dataset, args.data, train=split) for split in (True, False))
    train_batches = script.loader(args, train_set, device, augment=True)
    test_batches = script.loader(args, test_set, device)
    if state:
        network = script.place(restore_network(state, path / LAST, args.arch, args.bit, args.dataset), args, device)
    else:
        check = script.loader(args, train_set, device, limit=cli.CHECK_IMAGES)
        network = initial_network(args, train_batches, check, device)
    if args.compile:
        fuse_(network)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)
    optimizer = sgd(network, args.lr, args.momentum, args.wd)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        script.report_changes(args, state["args"])
    history = state.get("history", [])[:args.start_epoch]
    first = len(history) if args.start_epoch is None else args.start_epoch
    for epoch in range(first, args.epochs):
        history.append(train_one(epoch, args, network, optimizer, train_batches, test_batches))
        contents = network_state(network) | {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "args": plain(args)}
        run.save(contents, history, is_best=best_of(history) is history[-1])
    best, last = best_of(history), history[-1]
    print(f"{path}: best epoch {best['epoch'] + 1} with {best['test_top1']:.2f} % (chosen on the test set), "
          f"last epoch {last['epoch'] + 1} with {last['test_top1']:.2f} %")
    return {"best": best, "last": last, "directory": path}


def train_one(epoch: int, args: argparse.Namespace, network: Network, optimizer: torch.optim.Optimizer,
              train_batches: TensorLoader, test_batches: TensorLoader) -> dict[str, Any]:
    """Train for one epoch, evaluate on the test set, print both; return the line of the log."""
    began = time.monotonic()
    rate = epoch_rate(args.lr, args.lr_schedule, epoch, args.epochs)
    train_batches.set_epoch(epoch)
    name = f"epoch {epoch + 1}/{args.epochs}"
    trained = train_epoch(network, train_batches, optimizer, rate, args.amp, args.print_freq, args.limit, name)
    tested = evaluate(network, test_batches, args.amp, args.limit)
    line = log_line(epoch, rate(0), trained, tested, time.monotonic() - began)
    print(f"{name}: train loss {trained.loss:.3f}, train {trained.top1:.2f} %, test {tested.top1:.2f} %, {line['seconds']:.0f} s",
          flush=True)
    return line


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first line of the log with the highest accuracy on the test set."""
    return max(history, key=lambda line: line["test_top1"])


def test(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Evaluate a network on the test set and print its scores."""
    network = script.place(script.load_usable(args), args, device)
    if args.weight_bit not in (None, network.weight_bit):
        raise UserError(f"--weight-bit {args.weight_bit}: the network has {network.weight_bit or 'that of the recipe'}")
    batches = script.loader(args, load_images(args.dataset, args.data, train=False), device)
    scores = evaluate(network, batches, args.amp, args.limit)
    print(f"{args.arch}, {args.bit} bits, {args.dataset}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, "
          f"loss {scores.loss:.4f} on {scores.count} test images")
    return {"scores": scores}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    args = parse(argv)
    device = script.set_up(args)
    with script.profiled(args):
        return test(args, device) if args.evaluate else train(args, device)


if __name__ == "__main__":
    script.run(main)
