r"""Train, or quantize progressively, on ImageNet: one process, or one per GPU under torchrun.

    python -m torch.distributed.launch --nproc_per_node=4 dali_main.py -a alexnet -b 256 --bit 4 --workers 4 --lr=0.025 \
        --epochs 60 --dali_cpu /data/imagenet2012
    torchrun --nproc_per_node=4 --max-restarts=3 dali_main.py -a alexnet --bit 3 --lr 0.0025 \
        --init result/alexnet_4bit/model_best.pth.tar /data/imagenet2012
    python dali_main.py -a alexnet --bit 3 -e /data/imagenet2012

The directory holds train/ and val/ with one folder per class. Below 32 bits a run starts from TorchVision's float network
unless --init or --scratch say otherwise. -b is per process. After a failure torchrun goes on from the last epoch.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from quant import FLOAT_BITS
from utils import cli, script
from utils.training import train


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_parser(__doc__, ["imagenet"], batch_size=256)
    cli.add_imagenet_flags(parser, "+")
    cli.add_run_flags(parser, epochs=60, lr=0.025, wd=1e-4, milestones="1/3, 2/3 and 5/6")
    add = parser.add_argument
    add("--scratch", action="store_true", help="start below 32 bits from random weights")
    add("--pretrained", action="store_true", help="start from TorchVision's float weights, also at 32 bits (below: the default)")
    args = train.check(cli.resolve(parser.parse_args(resume_apart(sys.argv[1:] if argv is None else argv))))
    if args.pretrained and (args.scratch or args.init or args.resume is not None):
        parser.error("--pretrained, --scratch, --init and --resume exclude each other: choose where to start")
    if args.scratch and (args.init or args.resume is not None):
        parser.error("--scratch, --init and --resume exclude each other: choose where to start")
    if args.evaluate and (args.scratch or args.pretrained):
        parser.error("-e evaluates --init, or the run's best checkpoint: leave --scratch and --pretrained out")
    args.pretrained = args.pretrained or (args.bit != FLOAT_BITS and not args.scratch and args.init is None and args.resume is None)
    return args


def resume_apart(argv: list[str]) -> list[str]:
    """Return the arguments with a --resume in front of a directory moved behind it: that is ImageNet's, and no checkpoint."""
    for index, (flag, value) in enumerate(pairwise(argv)):
        if flag == "--resume" and Path(value).is_dir():
            return [*argv[:index], *argv[index + 1:], flag]
    return argv


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    return train.run(parse(argv))


if __name__ == "__main__":
    script.run(main)
