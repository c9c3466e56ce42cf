"""Settings: the flags as frozen dataclasses, each made and checked in one place; config.json is their `asdict`.

Fields have the names of the flags, whose help describes them. `of` takes all flags of a script by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import models
from quant import FLOAT_BITS

from .errors import UserError

SMOKE_BATCHES = 10
WORKERS = 4
DEFAULT_ARCH = {"cifar": "alex", "imagenet": "alexnet"}
CHECK_IMAGES = 2000  # training images, not augmented, on which accuracy is measured beside the test set


def picked(kind: type, flags: Mapping[str, Any], **resolved: Any) -> Any:
    """Return settings of a kind from the flags of the same names; `resolved` wins over them."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in {**flags, **resolved}.items() if name in names})


@dataclass(frozen=True)
class DataSettings:
    """The images, and how they are read.

    Attributes:
        dataset: "cifar10", "cifar100", "digits", "folder" or "imagenet".
        data: where CIFAR is, or is downloaded to; or the folder with train/ and test/.
        size: rows and columns of a folder's images; None for another data set.
        mean, std: of each channel, on the scale [0, 1], with which pixels are normalised; None: as the network was trained, or
            else the data set's.
        directories: ImageNet's: one with train/ and val/, or these two.
        batch_size: of each process.
        seed: of initialisation, order and augmentation.
        loader, workers, dali_cpu: ImageNet: the decoder (None: DALI if it is installed), its threads or processes, and whether
            it decodes on the CPU even if there is a GPU.
    """

    dataset: str
    data: Path | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    directories: tuple[Path, ...] = ()
    batch_size: int = 128
    seed: int = 0
    channels_last: bool = True
    loader: str | None = None
    workers: int | None = None
    dali_cpu: bool = False

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the settings; raise UserError where flags exclude each other."""
        directories = tuple(flags["directories"])
        given, imagenet = " ".join(map(str, directories)), bool(directories)
        if imagenet and (flags["dataset"] or len(directories) > 2):
            raise UserError(f"{given}: ImageNet is one directory, or two for train and val, and excludes --dataset")
        for flag, value in (("-ct", flags["cifar_type"]), ("--data", flags["data"])):
            if imagenet and value is not None:
                raise UserError(f"{flag} {value}: {directories[0]} is ImageNet's directory; leave one of them out")
        if not imagenet and (flags.get("loader") or flags.get("dali_cpu") or flags.get("workers") is not None):
            raise UserError("--loader, --dali_cpu and --workers read ImageNet: name its directory, or leave them out")
        if flags.get("dali_cpu") and flags.get("loader") == "torchvision":
            raise UserError("--dali_cpu --loader torchvision: only DALI decodes on a GPU; leave one out")
        if (flags["mean"] is None) != (flags["std"] is None):
            raise UserError("--mean and --std belong together: both say how pixels are normalised; give the other too")
        pixels = {name: None if flags[name] is None else tuple(flags[name]) for name in ("mean", "std")}
        if imagenet:
            workers = WORKERS if flags["workers"] is None else flags["workers"]
            return picked(cls, flags, dataset="imagenet", directories=directories, workers=workers, **pixels)
        dataset = flags["dataset"] or f"cifar{flags['cifar_type'] or 10}"
        if dataset == "digits" and flags["data"] is not None:
            raise UserError(f"--data {flags['data']}: digits come with scikit-learn; leave it out, or say --dataset folder for "
                            "images of your own")
        if dataset == "folder" and flags["data"] is None:
            raise UserError("--dataset folder: --data DIR names the folder that holds train/ and test/")
        if flags["size"] and dataset != "folder":
            raise UserError(f"--size {flags['size']}: only --dataset folder has images of another size; leave it out")
        return picked(cls, flags, dataset=dataset, directories=(), data=flags["data"] or Path("data"),
                      size=flags["size"] or (32 if dataset == "folder" else None), **pixels)


@dataclass(frozen=True)
class RunSettings:
    """The network, its start, the device, and where the results go."""

    arch: str
    bit: int
    result: Path = Path("result")
    init: Path | None = None
    resume: Path | None = None  # Path(): the directory's last checkpoint
    overwrite: bool = False
    evaluate: bool = False
    export: Path | None = None
    test: bool = False
    prof: bool = False
    amp: bool = False
    deterministic: bool = False
    device: int | None = None
    local_rank: int | None = None
    timeout: float | None = None
    print_freq: int = 50
    tf32: bool = True
    tensorboard: bool = False

    @property
    def limit(self) -> int | None:
        """Return after how many batches each pass stops: those of a smoke test."""
        return SMOKE_BATCHES if self.test else None

    @classmethod
    def of(cls, flags: Mapping[str, Any], dataset: str) -> Self:
        """Return the settings; raise UserError for flags that exclude each other or an architecture of another data set."""
        if flags["amp"] and flags.get("reference"):
            raise UserError("--amp --reference: bfloat16 has too few bits for the sums of the plain spiking layers; leave one out")
        bit = FLOAT_BITS if flags["bit"] is None else flags["bit"]
        arch, others = flags["arch"] or DEFAULT_ARCH[models.family(dataset)], models.architectures("cifar10")
        if dataset != "imagenet" and arch in set(models.architectures("imagenet")) - set(others):
            remedy = "name its directory last" if "loader" in flags else "dali_main.py trains it"
            raise UserError(f"--arch {arch}: this is ImageNet's: {remedy}, or choose one of {', '.join(others)}")
        try:
            models.recipe(arch, dataset)
        except ValueError as error:
            raise UserError(f"--arch {arch}: {error}") from error
        test = flags["test"] or flags["prof"]
        if test and (flags.get("resume") is not None or flags.get("start_epoch")):
            also = " and --start-epoch" if "start_epoch" in flags else ""
            raise UserError(f"-t and --prof run a few batches from the start: leave --resume{also} out")
        if flags.get("export") and "lr_schedule" in flags and not flags["evaluate"]:
            raise UserError(f"--export {flags['export']}: writes the network that -e evaluates; add -e")
        if flags.get("export") and test:
            raise UserError(f"--export {flags['export']}: says the accuracy on all images; leave -t and --prof out")
        if flags.get("resume") is not None and flags.get("overwrite"):
            raise UserError("--resume goes on with a run and --overwrite deletes it: choose one")
        return picked(cls, flags, arch=arch, bit=bit, test=test, overwrite=flags.get("overwrite", False) or test)
