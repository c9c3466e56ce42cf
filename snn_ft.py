r"""Convert a quantized network to a spiking one and tune it: layer by layer towards its ANN, or as a whole.

    python snn_ft.py --arch alex --bit 3 -id 2 -n 8 --init result/alex_3bit/model_best.pth.tar
    python snn_ft.py --arch resnet20 --bit 2 --method global
    python snn_ft.py --arch resnet20 --bit 2 -u --method through-time --calibrate 512 --epochs 10 --amp
    python snn_ft.py --arch resnet20 --bit 2 -u --resume
    python -m torch.distributed.launch --nproc_per_node=4 snn_ft.py -a alexnet -b 128 --bit 3 \
        --init result/alexnet_3bit/model_best.pth.tar --workers 4 --dali_cpu /data/imagenet2012

Training images without augmentation decide whether a unit's new state is kept, never the test set. The result
goes to {result}/{arch}_{bit}bit_ft (of another method: _ft_global, _ft_through-time; -u: with _unsigned; --steps N: with
_Nsteps; --start 0: with _start0) and loads in snn.py.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import utils  # noqa: F401 - before torch
from snn_layers import NORMS, SURROGATES
from utils import cli, script
from utils.checkpoints.resume import check_tuning
from utils.checkpoints.rundir import RunDirectory
from utils.config import CHECK_IMAGES
from utils.data.splits import Data
from utils.settings import CACHE, Settings
from utils.training.session import Session
from utils.training.tune import METHODS, check


def parse(argv: list[str] | None, before: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """Return the settings of the command line; the others are those of `before`, a run that goes on."""
    parser = cli.new_conversion_parser(__doc__)
    add, number, count = parser.add_argument, cli.number, cli.count
    add("--method", choices=tuple(METHODS), default="layerwise",
        help="layerwise: each unit learns its ANN's output; global: spikes forward, rates backward; through-time: "
             "backpropagation through all time steps, for unsigned neurons above all (default: layerwise)")
    add("-n", "--num_epochs", "--epochs", dest="epochs", type=count(1, "number of epochs"), default=1,
        help="epochs, layerwise: per unit (default: 1)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"),
        help="of SGD; global, through-time: falls to 0 as a cosine (default: 1e-3, through-time 2e-2)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"),
        help="of SGD (default: 5e-4 for alex and vgg11, else 1e-4)")
    add("--tune-images", "--calib", type=count(0, "number of images"), metavar="N",
        help="training images per epoch; 0: all (default: layerwise 10000, else 0)")
    add("--check-images", type=count(1, "number of images"), default=CHECK_IMAGES,
        help="training images, not augmented, on which accuracy is measured meanwhile (default: 2000)")
    add("--force", action="store_true", help="layerwise: keep each epoch's state, even if the accuracy did not rise")
    add("--online", action="store_true", help="layerwise: fresh augmentation and a run up to the unit in each epoch")
    add("--cache", type=number(float, 0, what="size"),
        help=f"layerwise: GB of each process for the spikes before the unit; if they do not fit, --online (default: {CACHE})")
    add("--teacher", action=argparse.BooleanOptionalAction,
        help="learn the ANN's probabilities instead of the labels (default: through-time does, global does not)")
    add("--norm", choices=NORMS,
        help="through-time: BN of each time step, one BN that all share, or frozen statistics (default: step)")
    add("--surrogate", choices=SURROGATES, help="through-time: surrogate for the derivative of a spike (default: rectangle)")
    add("--compile", action="store_true", help="through-time: compile the training step; on a GPU a CUDA graph")
    add("--nesterov", action=argparse.BooleanOptionalAction,
        help="Nesterov's momentum; not layerwise (default: through-time yes, global no)")
    add("--resume", action="store_const", const=Path(), help="go on after the last finished unit or epoch")
    cli.add_optimizer_flags(parser)
    if parser.flags(argv)["online"]:
        before = {**before, "cache": None}  # the run had a default for it
    return Settings.of(cli.completed(parser.flags(argv, before)))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Tune the remaining units or epochs, saving after each; return test accuracies, latency and directory."""
    settings = parse(argv)
    with (script.session(settings.run, settings.data.seed) as (device, place), script.profiled(settings.run),
          RunDirectory.opened(settings.run, settings.suffix, check_tuning) as run):
        settings = run.settings(settings, partial(parse, argv))
        script.repeatable(settings.run, settings.data.seed)
        session = Session(settings, Data(settings.data, device, place), run)
        check(settings, session)
        run.begin(settings, session.history)
        session.prepare()
        METHODS[settings.tuning.method](settings, session)
        return session.finish()


if __name__ == "__main__":
    script.run(main)
