r"""Train, or quantize progressively, on ImageNet: one process, or one per GPU under torchrun.

    python -m torch.distributed.launch --nproc_per_node=4 dali_main.py -a alexnet -b 256 --bit 4 --workers 4 --lr=0.025 \
        --epochs 60 --dali_cpu /data/imagenet2012
    torchrun --nproc_per_node=4 --max-restarts=3 dali_main.py -a alexnet --bit 3 --lr 0.0025 \
        --init result/alexnet_4bit/model_best.pth.tar /data/imagenet2012
    python dali_main.py -a alexnet --bit 3 -e /data/imagenet2012

The directory holds train/ and val/ with one folder per class. Below 32 bits a run starts from TorchVision's float network
unless --init or --scratch say otherwise. -b is per process. After a failure torchrun goes on from the last epoch.
"""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from main import main as train
from utils import cli, script
from utils.settings import Settings


def parse(argv: list[str] | None, before: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """Return the settings of the command line; the others are those of `before`, a run that goes on."""
    parser = cli.new_parser(__doc__, ["imagenet"], batch_size=256)
    cli.add_imagenet_flags(parser, "+")
    cli.add_run_flags(parser, epochs=60, lr=0.025, wd=1e-4, milestones="1/3, 2/3 and 5/6")
    add = parser.add_argument
    add("--scratch", action="store_true", help="below 32 bits: start from random weights")
    add("--pretrained", action="store_true", help="start from TorchVision's float weights, also at 32 bits (default below 32)")
    flags = parser.flags(resume_apart(sys.argv[1:] if argv is None else argv), before)
    return Settings.of(cli.completed(flags, flags["evaluate"]))


def resume_apart(argv: list[str]) -> list[str]:
    """Return the arguments with a --resume before a directory moved after it: the directory is ImageNet's, no checkpoint."""
    for index, (flag, value) in enumerate(pairwise(argv)):
        if flag == "--resume" and Path(value).is_dir():
            return [*argv[:index], *argv[index + 1:], flag]
    return argv


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with -e, as main.py does; return the results."""
    return train(argv, parse)


if __name__ == "__main__":
    script.run(main)
