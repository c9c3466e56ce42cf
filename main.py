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
from quant import calibrate_, quantize_, requantize_
from utils import cli
from utils.checkpoint import load_network, network_state, read_checkpoint, restore_network
from utils.cifar import ImageSet, TensorLoader, load_images
from utils.engine import evaluate, learning_rate, sgd, train_epoch
from utils.errors import UserError
from utils.rundir import RunDirectory, log_line, plain

CALIBRATION_IMAGES = 1024
CHECK_IMAGES = 2000  # training images on which a fit is checked


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--epochs", type=cli.count(1, "number of epochs"), default=300, help="length of the run (default: 300)")
    add("--start-epoch", type=cli.count(0, "epoch"), help="epoch to start at, counted from 0 (default: 0, or where --resume goes on)")
    add("--lr", "--learning-rate", type=cli.number(float, 0, what="learning rate"), default=0.1, help="initial learning rate (default: 0.1)")
    add("--lr-schedule", choices=("step", "cosine"), default="step", help="step: x0.1 at 1/2 and 3/4 of the run; cosine: to 0 (default: step)")
    add("--momentum", type=cli.number(float, 0, 1, "momentum"), default=0.9, help="SGD momentum (default: 0.9)")
    add("--wd", "--weight-decay", type=cli.number(float, 0, what="weight decay"), default=5e-4, help="weight decay (default: 5e-4)")
    add("--weight-bit", type=cli.bits, help="bits of the hidden weights where they are to differ from the recipe")
    add("-e", "--evaluate", action="store_true", help="evaluate --init (default: the run's best checkpoint) and stop")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="FILE", help="checkpoint to start from, ours or a published one, of any bit-width")
    start.add_argument("--resume", nargs="?", type=Path, const=Path(), metavar="FILE",
                       help="go on with an interrupted run: its directory's last checkpoint, or FILE")
    parser.add_argument("--init-bit", type=cli.bits, help="bits of a published --init file (default: --bit, then 32)")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is in the directory")
    args = cli.resolve(parser.parse_args(argv))
    args.epochs = 1 if args.test else args.epochs
    return args


def initial_network(args: argparse.Namespace, train_set: ImageSet, device: torch.device) -> Network:
    """Return the network to train: fresh, or from --init and, where bits changed, fitted to training images."""
    if args.init is None:
        network = models.build(args.arch, args.dataset)
        return place(quantize_(network, args.bit, args.weight_bit), args, device)
    network = load_network(args.init, args.arch, args.init_bit or published_bit(args), args.dataset)
    source = (network.bit, network.weight_bit)
    fits = source == (args.bit, args.weight_bit) and not network.trainable_start
    try:
        network = place(requantize_(network, args.bit, args.weight_bit), args, device)
    except ValueError as error:
        raise UserError(f"--init {args.init}: {error}") from error
    if not fits:
        fit(network, args, train_set, device)
    return network


def published_bit(args: argparse.Namespace) -> int | None:
    """Return --bit where --init is a published quantized network, which does not say its own; else None."""
    contents = read_checkpoint(args.init)
    keys = contents.get("state_dict", contents)
    return args.bit if "format" not in contents and any(key.endswith("act_alpha") for key in keys) else None


def place(network: Network, args: argparse.Namespace, device: torch.device) -> Network:
    """Move a network to the device and the memory format."""
    return network.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)


def fit(network: Network, args: argparse.Namespace, train_set: ImageSet, device: torch.device) -> None:
    """Fit clips, BN statistics and thresholds to augmented training images; print the accuracy before and after."""
    check = TensorLoader(train_set, args.batch_size, augment=False, device=device, limit=CHECK_IMAGES)
    before = evaluate(network, check, args.amp, args.limit, "before fitting").top1
    images, _ = next(iter(TensorLoader(train_set, CALIBRATION_IMAGES, augment=True, seed=args.seed, device=device)))
    calibrate_(network, images)
    network.trainable_start = False
    after = evaluate(network, check, args.amp, args.limit, "after fitting").top1
    print(f"fitted to {len(images)} training images: accuracy on {len(check.labels)} training images {before:.2f} -> {after:.2f} %")


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train for the epochs that are left, saving each; return best and last line of the log."""
    train_set, test_set = (load_images(args.dataset, args.data, train=split) for split in (True, False))
    train_batches = TensorLoader(train_set, args.batch_size, augment=True, seed=args.seed, device=device)
    test_batches = TensorLoader(test_set, args.batch_size, augment=False, device=device)
    path = args.result / f"{args.arch}_{args.bit}bit"
    state = read_checkpoint(path / "checkpoint.pth.tar" if args.resume == Path() else args.resume) if args.resume else {}
    if state:
        network = place(restore_network(state, args.resume, args.arch, args.bit, args.dataset), args, device)
    else:
        network = initial_network(args, train_set, device)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)
    optimizer = sgd(network, args.lr, args.momentum, args.wd)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    history = list(state.get("history", []))
    first = len(history) if args.start_epoch is None else args.start_epoch
    for epoch in range(first, args.epochs):
        began = time.monotonic()

        def rate(part: float, epoch: int = epoch) -> float:
            return args.lr * learning_rate(args.lr_schedule, (epoch + part) / args.epochs)

        train_batches.set_epoch(epoch)
        name = f"epoch {epoch + 1}/{args.epochs}"
        trained = train_epoch(network, train_batches, optimizer, rate, args.amp, args.print_freq, args.limit, name)
        tested = evaluate(network, test_batches, args.amp, args.limit)
        history.append(log_line(epoch, rate(0), trained, tested, time.monotonic() - began))
        best = max(history, key=lambda line: line["test_top1"])
        contents = network_state(network) | {"optimizer": optimizer.state_dict(), "args": plain(args)}
        run.save(contents, history, is_best=best is history[-1])
        print(f"{name}: train loss {trained.loss:.3f}, train {trained.top1:.2f} %, test {tested.top1:.2f} % "
              f"(best {best['test_top1']:.2f} %), {history[-1]['seconds']:.0f} s", flush=True)
    best, last = max(history, key=lambda line: line["test_top1"]), history[-1]
    print(f"{path}: best epoch {best['epoch'] + 1} with {best['test_top1']:.2f} % (chosen on the test set), "
          f"last epoch {last['epoch'] + 1} with {last['test_top1']:.2f} %")
    return {"best": best, "last": last, "directory": path}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    args = parse(argv)
    device = cli.set_up(args)
    return train(args, device)


if __name__ == "__main__":
    cli.run(main)
