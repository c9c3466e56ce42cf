"""Train a float network, or quantize one progressively, on CIFAR-10, CIFAR-100, digits or a folder of images.

    python main.py --arch alex --bit 32 -id 2 --wd 5e-4
    python main.py --arch alex --bit 4 -id 2 --wd 1e-4 --lr 4e-2 --init result/alex_32bit/model_best.pth.tar
    python main.py --arch alex --bit 4 -e --init result/alex_4bit/model_best.pth.tar

If --init has another bit-width, the network is fitted first: clips, BN statistics and thresholds, on training images.
The best epoch is the one with the highest accuracy on the test set, as in the papers; the last one is reported beside it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from utils import cli, script
from utils.checkpoints.resume import check_training
from utils.checkpoints.rundir import RunDirectory
from utils.data.splits import Data
from utils.settings import Settings, with_recipe
from utils.training import train


def parse(argv: list[str] | None, before: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """Return the settings of the command line; the others are those of `before`, a run that goes on."""
    parser = cli.new_parser(__doc__, ["cifar10"])
    cli.add_cifar_flags(parser)
    cli.add_run_flags(parser, epochs=300, lr=0.1, wd=5e-4, milestones="1/2 and 3/4")
    cli.add_recipe_flag(parser)
    flags = parser.flags(argv, before)
    flags = parser.flags(argv, with_recipe(flags["recipe"], flags["bit"], before))
    return Settings.of(cli.completed(flags, flags["evaluate"]))


def main(argv: list[str] | None = None, read: Callable[..., Settings] = parse) -> dict[str, Any]:
    """Train for the remaining epochs, saving each, or evaluate with -e; return the results."""
    settings = read(argv)
    with script.session(settings.run, settings.data.seed) as (device, place), script.profiled(settings.run):
        if settings.run.evaluate:
            return train.test(settings, Data(settings.data, device, place))
        with RunDirectory.opened(settings.run, settings.suffix, check_training, settings.training.teacher) as run:
            settings = run.settings(settings, partial(read, argv))
            script.repeatable(settings.run, settings.data.seed)
            trainer = train.Trainer(settings, Data(settings.data, device, place), run)
            run.begin(settings, trainer.history)
            if not run.contents:
                run.save(trainer.contents(), trainer.history, is_best=False)  # so that it can be resumed from its first epoch
            for epoch in trainer.epochs:
                trainer.train(epoch)
                run.save(trainer.contents(), trainer.history, trainer.improved)
            return trainer.result(run.path)


if __name__ == "__main__":
    script.run(main)
