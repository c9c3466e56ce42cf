"""Convert a quantized network to a spiking one and fine-tune it layer by layer towards its ANN.

    python snn_ft.py --arch alex --bit 3 -id 2 -n 8 --init result/alex_3bit/model_best.pth.tar
    python snn_ft.py --arch resnet20 --bit 2 -u --resume

Whether a unit's new state is kept is decided on training images without augmentation. The result goes to
{result}/{arch}_{bit}bit_ft (-u: _ft_unsigned) and is evaluated with snn.py --init .../model_best.pth.tar.
"""

import argparse
import time
from dataclasses import asdict
from typing import Any

import torch

from models import Network
from snn_layers import FinetuneConfig, TunedUnit, finetune, latency, state_bytes
from utils import cli, script
from utils.checkpoint import LAST, network_state, read_checkpoint, restore_network
from utils.cifar import TensorLoader, load_images
from utils.engine import autocast, evaluate, progress_bar
from utils.rundir import RunDirectory, plain

GIGABYTE = 2**30


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_conversion_parser(__doc__)
    add, number, count = parser.add_argument, cli.number, cli.count
    add("-n", "--num_epochs", type=count(1, "number of epochs"), default=1, help="epochs per unit (default: 1)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"), default=1e-3, help="of SGD (default: 1e-3)")
    add("--momentum", type=number(float, 0, 1, "momentum"), default=0.9, help="of SGD (default: 0.9)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"),
        help="of SGD (default: 5e-4 for alex and vgg11, else 1e-4)")
    add("--force", action="store_true", help="keep each epoch's state, also where the accuracy did not rise")
    add("--calib", type=count(0, "number of images"), default=10_000, help="training images per epoch; 0: all (default: 10000)")
    add("--check-images", type=count(1, "number of images"), default=2_000,
        help="training images, not augmented, whose accuracy decides (default: 2000)")
    add("--online", action="store_true", help="fresh augmentation in each epoch, and the network run up to the unit each time")
    add("--cache", type=number(float, 0, what="size"), default=8, help="GB for the spikes in front of the unit; "
        "what does not fit goes --online (default: 8)")
    add("--resume", action="store_true", help="go on after the last finished unit")
    add("--overwrite", action="store_true", help="delete the run that is in the directory")
    args = cli.resolve(parser.parse_args(argv))
    if args.wd is None:
        args.wd = 5e-4 if args.arch in ("alex", "vgg11") else 1e-4
    if args.test:
        args.overwrite, args.num_epochs = True, 1
        args.calib = args.check_images = cli.SMOKE_BATCHES * args.batch_size
    return args


def tuning_config(args: argparse.Namespace, ann: Network, snn: Network, batches: TensorLoader) -> FinetuneConfig:
    """Return the configuration; online where asked for or where the cached states would not fit."""
    needed = state_bytes(snn, ann, batches.first(1)) * len(batches.labels) / GIGABYTE
    online = args.online or needed > args.cache
    if online and not args.online:
        print(f"the states of {len(batches.labels)} images take {needed:.1f} GB of --cache {args.cache:g}: going --online")
    return FinetuneConfig(args.num_epochs, args.lr, args.momentum, args.wd, args.force, online)


def tune(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Tune the units that are left, saving after each; return the accuracies on the test set and the directory."""
    path = script.run_path(args, "_ft_unsigned" if args.unsigned else "_ft")
    state = read_checkpoint(path / LAST) if args.resume else {}
    ann = script.place(script.load_quantized(args), args, device)
    tuned = script.place(restore_network(state, path / LAST, args.arch, ann.bit, args.dataset), args, device) if state else ann
    snn = script.spiking(args, tuned)
    batches, check, test_batches = loaders(args, device)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)
    history = state.get("history", [])
    summary = state.get("finetune") or {
        "ann": evaluate(ann, test_batches, args.amp, args.limit, "ANN").top1,
        "before": evaluate(snn, test_batches, args.amp, args.limit, "SNN").top1, "neuron": snn.neuron, "delay": snn.delay}
    print(f"test set: quantized ANN {summary['ann']:.2f} %, {snn.neuron} SNN before fine-tuning {summary['before']:.2f} %",
          flush=True)
    config = tuning_config(args, ann, snn, batches)
    began = time.monotonic()

    def save(is_best: bool = False) -> None:
        run.save(network_state(snn) | {"finetune": summary, "args": plain(args)}, history, is_best)

    def on_unit(index: int, unit: TunedUnit) -> None:
        history.append({"unit": index, **asdict(unit), "seconds": round(time.monotonic() - began, 1)})
        save()
        print(f"{unit.name}: loss {unit.losses[0]:.3g} -> {unit.losses[-1]:.3g}, accuracy on {len(check.labels)} training images "
              f"{unit.accuracy_before:.2f} -> {unit.accuracy_after:.2f} %, kept {unit.kept_epochs} of {config.epochs}", flush=True)

    with autocast(device, args.amp):
        finetune(snn, ann, batches, check, config, history[-1]["unit"] + 1 if history else 1, on_unit, progress_bar)
    summary["after"] = evaluate(snn, test_batches, args.amp, args.limit, "SNN").top1
    save(is_best=True)
    print(f"{path}: test set {summary['before']:.2f} -> {summary['after']:.2f} % "
          f"({summary['after'] - summary['ann']:+.2f} to the ANN), latency {latency(snn)} steps")
    return summary | {"directory": path, "latency": latency(snn)}


def loaders(args: argparse.Namespace, device: torch.device) -> tuple[TensorLoader, TensorLoader, TensorLoader]:
    """Return the augmented training batches, the check batches (training images as they are) and the test batches."""
    train_set, test_set = (load_images(args.dataset, args.data, train=split) for split in (True, False))
    return (TensorLoader(train_set, args.batch_size, augment=True, seed=args.seed, device=device, limit=args.calib or None),
            TensorLoader(train_set, args.batch_size, augment=False, device=device, limit=args.check_images),
            TensorLoader(test_set, args.batch_size, augment=False, device=device))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    args = parse(argv)
    device = script.set_up(args)
    with script.profiled(args):
        return tune(args, device)


if __name__ == "__main__":
    script.run(main)
