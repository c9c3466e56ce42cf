r"""Convert a quantized network to a spiking one and fine-tune it: layer by layer towards its ANN, or as a whole.

    python snn_ft.py --arch alex --bit 3 -id 2 -n 8 --init result/alex_3bit/model_best.pth.tar
    python snn_ft.py --arch resnet20 --bit 2 --method global
    python snn_ft.py --arch resnet20 --bit 2 -u --resume
    python -m torch.distributed.launch --nproc_per_node=4 snn_ft.py -a alexnet -b 128 --bit 3 \
        --init result/alexnet_3bit/model_best.pth.tar --workers 4 --dali_cpu /data/imagenet2012

Whether a unit's new state is kept is decided on training images without augmentation, never on the test set. The result
goes to {result}/{arch}_{bit}bit_ft (global: _ft_global; -u: with _unsigned; --steps N: with _Nsteps; --start 0: with
_start0) and loads in snn.py.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from models import Network
from snn_layers import HALF, FinetuneConfig, RateNetwork, TunedUnit, UnitProgress, finetune, latency, own_parameters_, state_bytes
from utils import cli, script
from utils.checkpoint import LAST, network_state, read_checkpoint, restore_network
from utils.data import Data, Loader
from utils.distributed import average_, parallel
from utils.engine import autocast, epoch_rate, evaluate, progress_bar, restore_, sgd, train_epoch
from utils.errors import UserError
from utils.rundir import RunDirectory, plain, refuse_occupied

GIGABYTE = 2**30


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_conversion_parser(__doc__)
    add, number, count = parser.add_argument, cli.number, cli.count
    add("--method", choices=("layerwise", "global"), default="layerwise",
        help="layerwise: each unit learns its ANN's output; global: spikes forward, rates backward (default: layerwise)")
    add("-n", "--num_epochs", type=count(1, "number of epochs"), default=1, help="epochs, layerwise: per unit (default: 1)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"), default=1e-3,
        help="of SGD; global: falls to 0 as a cosine (default: 1e-3)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"),
        help="of SGD (default: 5e-4 for alex and vgg11, else 1e-4)")
    add("--calib", type=count(0, "number of images"), help="training images per epoch; 0: all (default: layerwise 10000, global 0)")
    add("--check-images", type=count(1, "number of images"), default=cli.CHECK_IMAGES,
        help="training images, not augmented, on which accuracy is measured meanwhile (default: 2000)")
    add("--force", action="store_true", help="layerwise: keep each epoch's state, also where the accuracy did not rise")
    add("--online", action="store_true", help="layerwise: fresh augmentation in each epoch, the network run up to the unit")
    add("--cache", type=number(float, 0, what="size"), default=8,
        help="layerwise: GB for the spikes in front of the unit; what does not fit goes --online (default: 8)")
    add("--teacher", action="store_true", help="global: learn the ANN's probabilities instead of the labels")
    add("--resume", action="store_true", help="go on after the last finished unit or epoch")
    cli.add_optimizer_flags(parser)
    return defaults(cli.resolve(parser.parse_args(argv)))


def defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the method, the architecture and --test."""
    whole = args.method == "global"
    if args.teacher and not whole:
        raise UserError("--teacher: layer-wise tuning learns from the ANN anyway; leave it out, or pass --method global")
    if whole and (args.force or args.online):
        raise UserError("--force and --online belong to layer-wise tuning: leave them out, or pass --method layerwise")
    for name, value in {"calib": 0 if whole else 10_000,
                        "wd": 5e-4 if args.arch in ("alex", "vgg11") else 1e-4}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.test:
        args.overwrite, args.num_epochs = True, 1
        args.calib = args.check_images = cli.SMOKE_BATCHES * args.batch_size
    return args


@dataclass
class Session:
    """What both methods work on: target, network, batches, the log so far, the state within it, `save()`.

    Attributes:
        optimizer_state: global: the optimizer's.
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
    count = session.batches.count
    needed = state_bytes(session.snn, session.ann, session.batches.first(1)) * count / GIGABYTE
    online = args.online or needed > args.cache
    if online and not args.online:
        print(f"the states of {count} images take {needed:.1f} GB of --cache {args.cache:g}: going --online")

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
                            script.compiles(args, session.snn, session.batches) and not args.reference)
    first = session.history[-1]["unit"] + 1 if session.history else 1
    started = UnitProgress(**session.progress) if session.progress else None
    try:
        # The plain layers of --online fire in float32: bfloat16 has too few bits for their sums.
        with autocast(session.batches.device, args.amp and not online, cache=False):
            finetune(session.snn, session.ann, session.batches, session.check, config, first, on_unit, progress_bar, average_,
                     on_epoch, started)
    except ValueError as error:
        raise UserError(f"{error}: lower --lr; --resume goes on behind the last epoch that was saved") from error


def globally(args: argparse.Namespace, session: Session) -> None:
    """Train the whole network, spikes forward and rates backward, saving after each epoch; the last one counts."""
    own_parameters_(session.snn)
    network = parallel(RateNetwork(session.snn, not args.reference, script.compiles(args, session.snn, session.batches)))
    optimizer = sgd(network, args.lr, args.momentum, args.wd)
    if session.optimizer_state:
        restore_(optimizer, session.optimizer_state)
    for epoch in range(len(session.history), args.num_epochs):
        began = time.monotonic()
        rate = epoch_rate(args.lr, "cosine", epoch, args.num_epochs)
        session.batches.set_epoch(epoch)
        name = f"epoch {epoch + 1}/{args.num_epochs}"
        trained = train_epoch(network, session.batches, optimizer, rate, args.amp, args.print_freq, args.limit, name,
                              session.ann if args.teacher else None)
        checked = evaluate(script.fast(args, session.snn, session.check), session.check, args.amp)
        seconds = round(time.monotonic() - began, 1)
        session.history.append({"epoch": epoch, "lr": rate(0), "train_loss": trained.loss, "train_top1": trained.top1,
                                "check_top1": checked.top1, "seconds": seconds})
        session.optimizer_state = optimizer.state_dict()
        session.save()
        print(f"{name}: train loss {trained.loss:.3f}, train {trained.top1:.2f} %, accuracy on {checked.count} training images "
              f"{checked.top1:.2f} %, {seconds:.0f} s", flush=True)


def tune(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Tune what is left, saving as it goes; return the accuracies on the test set, the latency and the directory."""
    kind = "_global" * (args.method == "global") + "_unsigned" * args.unsigned + f"_{args.steps}steps" * bool(args.steps)
    kind += f"_start{args.start:g}" * (args.start != HALF)
    path = script.run_path(args, "_ft" + kind)
    script.go_on_after_restart(args, path)
    state = resumed_state(args, path)
    refuse_occupied(path, bool(state), args.overwrite)
    data = Data(args, device)
    ann = script.place(script.load_quantized(args, data), args, device)
    tuned = script.place(restore_network(state, path / LAST, args.arch, ann.bit, args.dataset), args, device) if state else ann
    snn = script.spiking(args, tuned)
    batches = data.batches(train=True, augment=True, limit=args.calib or None)
    check, test_batches = data.batches(train=True, limit=args.check_images), data.batches(train=False)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)

    def score(network: Network, name: str) -> float:
        runner = network if network is ann else script.fast(args, network, test_batches)
        return evaluate(runner, test_batches, args.amp, args.limit, name).top1

    summary = state.get("finetune") or {"neuron": snn.neuron, "delay": snn.delay, "steps": snn.time_steps, "start": snn.start,
                                        "ann": score(ann, "ANN"), "before": score(snn, "SNN"), "seconds": 0.0}
    print(f"test set: quantized ANN {summary['ann']:.2f} %, {snn.neuron} SNN before fine-tuning {summary['before']:.2f} %",
          flush=True)
    history = state.get("history", [])
    if state:
        same_frozen(tuned, ann, path)
        run.log(history)
    if args.calibrate and not state:
        summary["seconds"] += script.calibrate(args, snn, ann, batches)
        summary["calibrated"] = score(snn, "calibrated SNN")
        print(f"test set: calibrated SNN {summary['calibrated']:.2f} %", flush=True)

    spent, began = summary.get("seconds", 0.0), time.monotonic()

    def save(is_best: bool = False) -> None:
        contents = network_state(snn) | {"finetune": summary, "args": plain(args), "optimizer": session.optimizer_state,
                                         "progress": session.progress}
        run.save(contents, history, is_best)

    def save_progress() -> None:
        summary["seconds"] = round(spent + time.monotonic() - began, 1)
        save()

    session = Session(ann, snn, batches, check, history, state.get("optimizer"), state.get("progress"), save_progress)
    if not state:
        save()  # so that a run that is killed before its first epoch ends can be resumed
    {"layerwise": layerwise, "global": globally}[args.method](args, session)
    summary["after"] = score(snn, "SNN")
    save(is_best=True)
    print(f"{path}: test set {summary['before']:.2f} -> {summary['after']:.2f} % ({summary['after'] - summary['ann']:+.2f} "
          f"to the ANN) in {summary['seconds']:.0f} s, latency {latency(snn)} steps")
    return summary | {"directory": path, "latency": latency(snn)}


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
    if args.init is None and state["args"]["init"] is not None:
        args.init = Path(state["args"]["init"])
    script.report_changes(args, state["args"])
    return state


def check_tuning(state: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a checkpoint's log, arguments and progress are what a fine-tuning run has written."""
    summary, history, progress = state["finetune"], state.get("history"), state.get("progress")
    whole = (isinstance(summary, dict) and {"neuron", "delay", "ann", "before"} <= summary.keys() and isinstance(history, list)
             and all(isinstance(line, dict) and {"unit", "epoch"} & line.keys() for line in history)
             and isinstance(state.get("args"), dict) and "init" in state["args"]
             and (progress is None or (isinstance(progress, dict) and progress.keys() == {f.name for f in fields(UnitProgress)})))
    if not whole:
        raise UserError(f"checkpoint {file} has a damaged log: copy it again, or start anew with --overwrite")


def same_frozen(tuned: Network, ann: Network, path: Path) -> None:
    """Raise UserError unless a tuned network has the thresholds and BN statistics of its ANN, which tuning never changes."""
    ours = tuned.state_dict()
    for name, tensor in ann.state_dict().items():
        if name.endswith(("threshold", "running_mean", "running_var")) and not torch.equal(tensor, ours[name]):
            raise UserError(f"--init: the run in {path} tunes another network, {name} differs; leave --init out, or name the "
                            "file that the run was started with")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    args = parse(argv)
    with script.session(args) as device, script.profiled(args):
        return tune(args, device)


if __name__ == "__main__":
    script.run(main)
