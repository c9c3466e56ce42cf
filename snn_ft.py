r"""Convert a quantized network to a spiking one and fine-tune it: layer by layer towards its ANN, or as a whole.

    python snn_ft.py --arch alex --bit 3 -id 2 -n 8 --init result/alex_3bit/model_best.pth.tar
    python snn_ft.py --arch resnet20 --bit 2 --method global
    python snn_ft.py --arch resnet20 --bit 2 -u --method through-time --calibrate 512 --epochs 10 --amp
    python snn_ft.py --arch resnet20 --bit 2 -u --resume
    python -m torch.distributed.launch --nproc_per_node=4 snn_ft.py -a alexnet -b 128 --bit 3 \
        --init result/alexnet_3bit/model_best.pth.tar --workers 4 --dali_cpu /data/imagenet2012

Whether a unit's new state is kept is decided on training images without augmentation, never on the test set. The result
goes to {result}/{arch}_{bit}bit_ft (of another method: _ft_global, _ft_through-time; -u: with _unsigned; --steps N: with
_Nsteps; --start 0: with _start0) and loads in snn.py.
"""

import argparse
import time
from types import MappingProxyType
from typing import Any

import torch

from models import Network
from snn_layers import HALF, NORMS, SURROGATES, latency, norm_steps
from utils import cli, script
from utils.checkpoints.checkpoint import LAST, network_state, restore_network
from utils.checkpoints.rundir import RunDirectory, plain, refuse_occupied
from utils.data.splits import Data
from utils.distributed.processes import check_everywhere
from utils.errors import UserError
from utils.training import loading
from utils.training.engine import evaluate
from utils.training.tune import Session, globally, layerwise, resumed_state, same_frozen, through_time

CACHE = 8  # GB
METHODS = MappingProxyType({"layerwise": layerwise, "global": globally, "through-time": through_time})


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_conversion_parser(__doc__)
    add, number, count = parser.add_argument, cli.number, cli.count
    add("--method", choices=tuple(METHODS), default="layerwise",
        help="layerwise: each unit learns its ANN's output; global: spikes forward, rates backward; through-time: "
             "backpropagation through all time steps, for unsigned neurons above all (default: layerwise)")
    add("-n", "--num_epochs", "--epochs", type=count(1, "number of epochs"), default=1,
        help="epochs, layerwise: per unit (default: 1)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"),
        help="of SGD; global, through-time: falls to 0 as a cosine (default: 1e-3, through-time 2e-2)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"),
        help="of SGD (default: 5e-4 for alex and vgg11, else 1e-4)")
    add("--calib", type=count(0, "number of images"), help="training images per epoch; 0: all (default: layerwise 10000, else 0)")
    add("--check-images", type=count(1, "number of images"), default=cli.CHECK_IMAGES,
        help="training images, not augmented, on which accuracy is measured meanwhile (default: 2000)")
    add("--force", action="store_true", help="layerwise: keep each epoch's state, also where the accuracy did not rise")
    add("--online", action="store_true", help="layerwise: fresh augmentation in each epoch, the network run up to the unit")
    add("--cache", type=number(float, 0, what="size"),
        help=f"layerwise: GB of each process for spikes in front of the unit; what does not fit goes --online (default: {CACHE})")
    add("--teacher", action=argparse.BooleanOptionalAction,
        help="learn the ANN's probabilities instead of the labels (default: through-time does, global does not)")
    add("--norm", choices=NORMS,
        help="through-time: BN of each time step, one BN that all share, or frozen statistics (default: step)")
    add("--surrogate", choices=SURROGATES, help="through-time: what stands for the derivative of a spike (default: rectangle)")
    add("--nesterov", action=argparse.BooleanOptionalAction,
        help="Nesterov's momentum; not layerwise (default: through-time yes, global no)")
    add("--resume", action="store_true", help="go on after the last finished unit or epoch")
    cli.add_optimizer_flags(parser)
    return defaults(cli.resolve(parser.parse_args(argv)))


def defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the method, the architecture and --test."""
    whole, unrolled = args.method != "layerwise", args.method == "through-time"
    if args.teacher is not None and not whole:
        raise UserError("--teacher: layer-wise tuning learns from the ANN anyway; leave it out, or pass --method global")
    if args.nesterov is not None and not whole:
        raise UserError("--nesterov: layer-wise tuning has plain momentum; leave it out, or pass --method global")
    if args.nesterov and args.momentum == 0:
        raise UserError("--nesterov --momentum 0: Nesterov's momentum is one; leave one of them out")
    if (args.norm or args.surrogate) and not unrolled:
        raise UserError("--norm and --surrogate belong to tuning through time: leave them out, or pass --method through-time")
    if whole and (args.force or args.online):
        raise UserError("--force and --online belong to layer-wise tuning: leave them out, or pass --method layerwise")
    if args.cache is not None and (whole or args.online):
        raise UserError(f"--cache {args.cache:g}: only layer-wise tuning keeps spikes, and not --online; leave it out")
    if args.test and args.resume:
        raise UserError("-t and --prof run a few batches from the start: leave --resume out")
    for name, value in {"cache": CACHE, "calib": 0 if whole else 10_000, "lr": 2e-2 if unrolled else 1e-3, "teacher": unrolled,
                        "nesterov": unrolled and args.momentum > 0, "norm": NORMS[0], "surrogate": SURROGATES[0],
                        "wd": 5e-4 if args.arch in ("alex", "vgg11") else 1e-4}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.test:
        args.overwrite, args.num_epochs = True, 1
        args.calib = args.check_images = cli.SMOKE_BATCHES * args.batch_size
    return args


def tune(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Tune what is left, saving as it goes; return the accuracies on the test set, the latency and the directory."""
    kind = f"_{args.method}" * (args.method != "layerwise") + "_unsigned" * args.unsigned + f"_{args.steps}steps" * bool(args.steps)
    kind += f"_start{args.start:g}" * (args.start != HALF)
    path = script.run_path(args, "_ft" + kind)
    check_everywhere(path / LAST)
    script.go_on_after_restart(args, path)
    state = resumed_state(args, path)
    refuse_occupied(path, bool(state), args.overwrite)
    data = Data(args, device)
    start, ann, _ = loading.load_quantized(args, data, device, learns=True)
    if args.method != "through-time" and norm_steps(start) is not None:
        raise UserError(f"--init {loading.init_path(args)}: the network has BN of each time step; only --method through-time "
                        "goes on with it")
    tuned = loading.place(restore_network(state, path / LAST, args.arch, ann.bit, args.dataset), args, device) if state else start
    snn = loading.spiking(args, tuned)
    batches = data.batches(train=True, augment=True, limit=args.calib or None)
    check, test_batches = data.batches(train=True, limit=args.check_images), data.batches(train=False)
    run = RunDirectory(path, args, resume=bool(state), overwrite=args.overwrite)

    def score(network: Network, name: str) -> float:
        runner = network if network is ann else loading.fast(args, network, test_batches)
        return evaluate(runner, test_batches, args.amp, args.limit, name).top1

    summary = state.get("finetune") or {"neuron": snn.neuron, "delay": snn.delay, "steps": snn.time_steps, "start": snn.start,
                                        "ann": score(ann, "ANN"), "before": score(snn, "SNN"), "seconds": 0.0}
    print(f"test set: quantized ANN {summary['ann']:.2f} %, {snn.neuron} SNN before fine-tuning {summary['before']:.2f} %",
          flush=True)
    history = state.get("history", [])
    if state:
        same_frozen(tuned, start, path, args.method)
        run.log(history)
    if args.calibrate and not state:
        summary["seconds"] += loading.calibrate(args, snn, ann, batches)
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
    METHODS[args.method](args, session)
    summary["after"] = score(snn, "SNN")
    save(is_best=True)
    print(f"{path}: test set {summary['before']:.2f} -> {summary['after']:.2f} % ({summary['after'] - summary['ann']:+.2f} "
          f"to the ANN) in {summary['seconds']:.0f} s, latency {latency(snn)} steps")
    return summary | {"directory": path, "latency": latency(snn)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    args = parse(argv)
    with script.session(args) as device, script.profiled(args):
        return tune(args, device)


if __name__ == "__main__":
    script.run(main)
