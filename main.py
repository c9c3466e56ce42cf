"""Train a float network, or quantize one progressively, on CIFAR-10, CIFAR-100 or digits.

    python main.py --arch alex --bit 32 -id 2 --wd 5e-4
    python main.py --arch alex --bit 4 -id 2 --wd 1e-4 --lr 4e-2 --init result/alex_32bit/model_best.pth.tar
    python main.py --arch alex --bit 4 -e --init result/alex_4bit/model_best.pth.tar

A network of another bit-width given by --init is fitted first: clips, BN statistics and thresholds, on training images.
The best epoch is the one with the highest accuracy on the test set, as in the papers; the last one is reported beside it.
"""

import argparse
from typing import Any

from utils import cli, script
from utils.training import train


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.new_parser(__doc__, ["cifar10"])
    cli.add_cifar_flags(parser)
    cli.add_run_flags(parser, epochs=300, lr=0.1, wd=5e-4, milestones="1/2 and 3/4")
    return train.check(cli.resolve(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script; return what it printed."""
    return train.run(parse(argv))


if __name__ == "__main__":
    script.run(main)
