"""How a network is trained, how it spikes and how it is tuned: settings, see `utils.config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from quant import FLOAT_BITS
from snn_layers import HALF, NEURONS, NORMS, SURROGATES

from .config import CHECK_IMAGES, SMOKE_BATCHES, DataSettings, RunSettings, picked
from .errors import UserError

CACHE = 8  # GB
TUNE_IMAGES = 10_000  # of an epoch of layer-wise tuning


def fast(epochs: str, lr: str, wd: str, **more: str) -> dict[str, str]:
    """Return flags of a training with a cosine, by name."""
    return {"epochs": epochs, "lr": lr, "wd": wd, "lr_schedule": "cosine", **more}


# What --recipe fast stands for at each bit-width, 4 also for more. At 2 bits a clip becomes negative without the warm-up.
FAST = MappingProxyType({FLOAT_BITS: fast("100", "0.1", "5e-4"), 4: fast("20", "0.01", "1e-4"), 3: fast("24", "0.02", "1e-4"),
                         2: fast("60", "0.1", "5e-4", warmup="1")})


def recipe_flags(recipe: str, bit: int) -> dict[str, str]:
    """Return the flags of training that a recipe stands for, by name; none for the published one, which are the defaults."""
    return {} if recipe == "published" else FAST[max(known for known in FAST if known <= bit)]


def with_recipe(recipe: str, bit: int | None, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `before`, of a run that goes on or of none, with those of a recipe if the run had another one."""
    if recipe == before.get("recipe", "published"):
        return dict(before)
    named = {name for flags in FAST.values() for name in flags}
    return {name: value for name, value in before.items() if name not in named} | recipe_flags(recipe, bit or FLOAT_BITS)


def words(flags: Mapping[str, str]) -> tuple[str, ...]:
    """Return flags by name as the words of a command line."""
    return tuple(word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value))


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained."""

    epochs: int
    lr: float
    wd: float
    start_epoch: int | None = None
    recipe: str = "published"
    lr_schedule: str = "step"
    warmup: float = 0.0
    threshold_lr: float | None = None
    clip_lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    ema: float = 0.0
    label_smoothing: float = 0.0
    teacher: Path | None = None
    teacher_arch: str | None = None
    accum: int = 1
    weight_bit: int | None = None
    init_bit: int | None = None
    compile: bool = False
    pretrained: bool = False

    @classmethod
    def of(cls, flags: Mapping[str, Any], run: RunSettings) -> Self:
        """Return the settings; raise UserError where flags exclude each other."""
        if run.bit == FLOAT_BITS and flags["weight_bit"] not in (None, FLOAT_BITS):
            raise UserError(f"--weight-bit {flags['weight_bit']}: quantized weights need quantized activations, --bit 2 to 8")
        if run.evaluate and run.resume is not None:
            raise UserError("-e evaluates --init, or the run's best checkpoint: leave --resume out, or name its FILE with --init")
        if flags["init_bit"] and not run.init:
            raise UserError(f"--init-bit {flags['init_bit']}: says the bits of a published --init FILE; name it, or leave "
                            "--init-bit out")
        epochs = 1 if run.test else flags["epochs"]
        if (flags["start_epoch"] or 0) >= epochs:
            raise UserError(f"--start-epoch {flags['start_epoch']}: nothing is left of --epochs {epochs}, counted from 0")
        if flags["teacher_arch"] and not flags["teacher"]:
            raise UserError(f"--teacher-arch {flags['teacher_arch']}: is of a --teacher FILE; name it, or leave --teacher-arch out")
        if flags["teacher"] and flags["label_smoothing"]:
            raise UserError(f"--label-smoothing {flags['label_smoothing']:g}: with a --teacher no labels are learned; leave it out")
        if flags["nesterov"] and not flags["momentum"]:
            raise UserError("--nesterov: needs a --momentum above 0")
        if not flags["lr"] and (flags["threshold_lr"] is not None or flags["clip_lr"] is not None):
            raise UserError("--threshold-lr and --clip-lr fall as --lr does, which is 0: pass a small --lr, for example 1e-12")
        warmup = 0.0 if run.test else flags["warmup"]
        if warmup >= epochs:
            raise UserError(f"--warmup {warmup:g}: nothing is left of --epochs {epochs} after it")
        start = "--pretrained" * flags["pretrained"] or "--scratch" * flags.get("scratch", False)
        if start and (run.init or run.resume is not None or (flags["pretrained"] and flags["scratch"])):
            raise UserError(f"{start}, --init and --resume exclude each other, as --pretrained and --scratch do: choose where "
                            "to start")
        if start and run.evaluate:
            raise UserError("-e evaluates --init, or the run's best checkpoint: leave --scratch and --pretrained out")
        elsewhere = run.bit == FLOAT_BITS or flags.get("scratch", True) or run.init or run.resume is not None
        return picked(cls, flags, epochs=epochs, warmup=warmup, weight_bit=None if run.bit == FLOAT_BITS else flags["weight_bit"],
                      pretrained=flags["pretrained"] or not elsewhere)


@dataclass(frozen=True)
class SpikeSettings:
    """The spiking network: its neuron and delay, the steps that run, and the membrane at the start in thresholds.

    Attributes:
        calibrate: training images on which the biases are shifted first.
        fit, weight_bit: a float network is quantized first: training images on which it is fitted, and bits of its weights.
        reference: run the plain spiking layers instead of their deployment.
        statistics: count what each layer fires.
    """

    neuron: str = "signed"
    delay: int = 0
    steps: int | None = None
    start: float = HALF
    calibrate: int = 0
    fit: int | None = None
    weight_bit: int | None = None
    reference: bool = False
    statistics: bool = True

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the settings; conversion checks them against the network."""
        return picked(cls, flags)

    @property
    def suffix(self) -> str:
        """Return the part of a directory's name that stands for these neurons."""
        name = self.neuron.rpartition(":")[2]
        kind = f"_{name}" * (name != "signed") + f"_{self.steps}steps" * bool(self.steps)
        return kind + f"_start{self.start:g}" * (self.start != HALF)


@dataclass(frozen=True)
class TuneSettings:
    """How a spiking network is tuned. A setting that the method does not have is None."""

    method: str
    epochs: int
    lr: float
    wd: float
    momentum: float = 0.9
    tune_images: int = 0
    check_images: int = CHECK_IMAGES
    force: bool = False
    online: bool = False
    cache: float | None = None
    teacher: bool | None = None
    nesterov: bool | None = None
    norm: str | None = None
    surrogate: str | None = None
    compile: bool = False

    @classmethod
    def of(cls, flags: Mapping[str, Any], run: RunSettings) -> Self:
        """Return the settings; raise UserError where flags exclude each other."""
        whole, unrolled = flags["method"] != "layerwise", flags["method"] == "through-time"
        if unrolled and flags["neuron"] not in NEURONS:
            raise UserError(f"--neuron {flags['neuron']}: tuning through time has a derivative for {' and '.join(NEURONS)} neurons "
                            "only; choose one of them, or another --method")
        if flags["teacher"] is not None and not whole:
            raise UserError("--teacher: layer-wise tuning learns from the ANN anyway; leave it out, or pass --method global")
        if flags["nesterov"] is not None and not whole:
            raise UserError("--nesterov: layer-wise tuning has plain momentum; leave it out, or pass --method global")
        if flags["nesterov"] and flags["momentum"] == 0:
            raise UserError("--nesterov --momentum 0: Nesterov's method needs momentum; leave one of them out")
        if (flags["norm"] or flags["surrogate"]) and not unrolled:
            raise UserError("--norm and --surrogate belong to tuning through time: leave them out, or pass --method through-time")
        if flags["compile"] and not unrolled:
            raise UserError("--compile: only a step through time is compiled whole; leave it out, or pass --method through-time")
        if whole and (flags["force"] or flags["online"]):
            raise UserError("--force and --online belong to layer-wise tuning: leave them out, or pass --method layerwise")
        kept = not whole and not flags["online"]
        if flags["cache"] is not None and not kept:
            raise UserError(f"--cache {flags['cache']:g}: only layer-wise tuning without --online keeps spikes; leave it out")
        values = {"cache": CACHE if kept else None, "tune_images": 0 if whole else TUNE_IMAGES, "lr": 2e-2 if unrolled else 1e-3,
                  "teacher": unrolled if whole else None, "nesterov": unrolled and flags["momentum"] > 0 if whole else None,
                  "norm": NORMS[0] if unrolled else None, "surrogate": SURROGATES[0] if unrolled else None,
                  "wd": 5e-4 if run.arch in ("alex", "vgg11") else 1e-4}
        resolved = {name: value if flags[name] is None else flags[name] for name, value in values.items()}
        if run.test:
            images = SMOKE_BATCHES * flags["batch_size"]
            resolved |= {"epochs": 1, "tune_images": images, "check_images": images}
        return picked(cls, flags, **resolved)


@dataclass(frozen=True)
class Settings:
    """All settings of a script."""

    run: RunSettings
    data: DataSettings
    training: TrainSettings | None = None
    spiking: SpikeSettings | None = None
    tuning: TuneSettings | None = None

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the settings of a script that has these flags; raise UserError where they exclude each other."""
        data = DataSettings.of(flags)
        run = RunSettings.of(flags, data.dataset)
        return cls(run, data, TrainSettings.of(flags, run) if "lr_schedule" in flags else None,
                   SpikeSettings.of(flags) if "neuron" in flags else None,
                   TuneSettings.of(flags, run) if "method" in flags else None)

    @property
    def suffix(self) -> str:
        """Return the end of the directory's name, after architecture and bits; smoke tests have directories of their own."""
        tuned = ""
        if self.tuning is not None:
            tuned = "_ft" + f"_{self.tuning.method}" * (self.tuning.method != "layerwise") + self.spiking.suffix
        return tuned + "_test" * self.run.test
