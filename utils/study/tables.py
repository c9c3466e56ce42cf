"""The tables of `reproduce.py`: rows, and the stages that each row takes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from quant import FLOAT_BITS, time_steps

from ..checkpoints.checkpoint import BEST, run_name
from .networks import CALIBRATE, NEURONS, RESNETS, Networks, Source
from .results import Row
from .stages import Stage

ARCHS = {"cifar10": ("resnet20", "alex", "vgg11", "vgg16", "resnet18", "resnet56"), "imagenet": ("alexnet", "vgg16", *RESNETS)}
ELSEWHERE = ("torchvision:resnet18", "torchvision:mobilenet_v2", "examples/vgg.py:vgg")  # not made for this repository
ELSEWHERE_RATE = 0.2  # at the published rates, few epochs end at half the accuracy
FROM_FLOAT, FLOAT_FILE = "fast-from-float", Path("resnet20_float.pth.tar")
TABLES = ("cifar10", "imagenet", "elsewhere", "recipe", "fast", FROM_FLOAT, "ablation", "conversion", "latency")
RECIPE_EPOCHS = 15
RECIPE_PARTS = MappingProxyType({"nesterov": ("--nesterov",), "ema": ("--ema", "0.999"), "warmup": ("--warmup", "1"),
                                 "rates": ("--threshold-lr", "0.1", "--clip-lr", "0.02")})  # of APoT: θ .1, α .02

Make = Callable[[Source], tuple[Stage, ...]]
WHOLE = ("calibrated-global", *CALIBRATE)
THROUGH = ("calibrated-time", *CALIBRATE)


def spiking(networks: Networks, bit: int, neuron: str, seeds: list[int], method: str, make: Make, steps: int | None = None) -> Row:
    """Return a row of a spiking network; `make` returns the stages after the training of its network.

    If no stage uses random numbers, as in the conversion of a file, 0 is the only seed.
    """
    def chain(seed: int) -> tuple[Stage, ...]:
        return (*networks.chain(bit, seed), *make(Source(networks, bit, neuron, seed)))

    draws = any(stage.script != "snn" or stage.flag("--calibrate") for stage in chain(seeds[0]))
    return Row(networks, bit, neuron, method, tuple(map(chain, seeds if draws else [0])), steps)


def once(method: Callable[..., Stage], *arguments: str | int) -> Make:
    """Return a function that makes one run: a method of `Source` with its arguments."""
    return lambda source: (method(source, *arguments),)


AS_IT_IS = once(Source.evaluated, "converted")


def both(source: Source) -> tuple[Stage, ...]:
    """Return layer-wise tuning, then global tuning of its result."""
    first = source.layerwise("layerwise")
    result = source.networks.study / first.name / run_name(source.networks.arch, source.bit, "_ft") / BEST
    return (first, replace(source, network=result).whole("layerwise-global"))


def main_table(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return an architecture at all bit-widths: ANN, unsigned, signed, tuned, delay = T."""
    return trained_and_converted(networks, seeds, lambda full: [
        ("unsigned", "converted", AS_IT_IS), ("signed", "converted", AS_IT_IS),
        ("signed", "layer-wise", once(Source.layerwise, "layerwise")),
        ("signed", "calibrated, global", once(Source.whole, *WHOLE)),
        ("signed", f"delay {full}", once(Source.delayed, full))])


def elsewhere(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return a network that was not made for this repository: ANN, unsigned, signed, calibrated, tuned, delay = T."""
    return trained_and_converted(networks, seeds, lambda full: [
        ("unsigned", "converted", AS_IT_IS), ("signed", "converted", AS_IT_IS),
        ("signed", "calibrated", once(Source.evaluated, "calibrated", *CALIBRATE)),
        ("signed", "calibrated, global", once(Source.whole, *WHOLE)),
        ("unsigned", f"delay {full}", once(Source.delayed, full))])


def fast(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return a network trained with the fast recipe: ANN, both neurons converted, tuned as a whole and through time."""
    return trained_and_converted(networks, seeds, lambda full: [
        *((neuron, *method) for neuron in NEURONS
          for method in (("converted", AS_IT_IS), ("calibrated, global", once(Source.whole, *WHOLE)),
                         ("calibrated, through time", once(Source.unrolled, *THROUGH)))),
        ("signed", f"delay {full}", once(Source.delayed, full))])


def trained_and_converted(networks: Networks, seeds: list[int], kinds: Callable[[int], list[tuple[str, str, Make]]]) -> list[Row]:
    """Return the ANN of each bit-width, and the `kinds` of its spiking network with T steps: neuron, method and stages."""
    rows = []
    for bit in networks.bits:
        rows.append(Row(networks, bit, "ANN", "trained", tuple(networks.chain(bit, seed) for seed in seeds)))
        if bit != FLOAT_BITS:
            rows += [spiking(networks, bit, neuron, seeds, method, make) for neuron, method, make in kinds(time_steps(bit))]
    return rows


def conversion(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return the steps from the quantized ANN to a spiking network without loss."""
    rows = []
    for bit in (4, 3, 2):
        for neuron in NEURONS:
            row = partial(spiking, networks, bit, neuron, seeds)
            rows += converted(row, bit, neuron) + (tuned(row, bit, neuron) if bit < 4 else [])
    return rows


def converted(row: Callable[[str, Make], Row], bit: int, neuron: str) -> list[Row]:
    """Return the rows without training."""
    full, half = time_steps(bit), 2 ** (bit - 1)
    rows = [row("converted", AS_IT_IS),
            row("calibrated", once(Source.evaluated, "calibrated", *CALIBRATE))]
    if bit < 4 and neuron == "signed":
        rows += [row(f"delay {delay}", once(Source.delayed, delay)) for delay in (1, 2, full)]
        early = once(Source.evaluated, f"calibrated-steps{half}", "--steps", str(half), *CALIBRATE)
        rows.append(row(f"calibrated, {half} of {full} steps", early))
    return rows


def tuned(row: Callable[[str, Make], Row], bit: int, neuron: str) -> list[Row]:
    """Return the rows of tuning."""
    full, half = time_steps(bit), 2 ** (bit - 1)
    rows = [row("calibrated, global", once(Source.whole, *WHOLE)),
            row("calibrated, through time", once(Source.unrolled, *THROUGH))]
    if neuron == "signed":
        early = ("calibrated-global-steps" + str(half), "--steps", str(half), *CALIBRATE)
        rows += [row(f"calibrated, global, {half} of {full} steps", once(Source.whole, *early)),
                 row("layer-wise", once(Source.layerwise, "layerwise")), row("global", once(Source.whole, "global")),
                 row("layer-wise, global", both)]
    return rows


def ablation(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return the half-threshold start, the signed rule and tuning, each with and without."""
    rows = []
    for bit in (4, 3, 2):
        for neuron in NEURONS:
            row = partial(spiking, networks, bit, neuron, seeds)
            for name, kind, flags in (("", "", ()), ("start 0, ", "start0-", ("--start", "0"))):
                rows += [row(f"{name}layer-wise", once(Source.layerwise, f"{kind}layerwise", *flags)),
                         row(f"{name}converted", once(Source.evaluated, f"{kind}converted", *flags))]
    return rows


def recipe(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return what each part of a training recipe adds to the published one by itself, and all together, at equal cost.

    All rows of a bit-width start from the same network, the first seed's with one bit more; the teacher is its float network.
    """
    short = replace(networks, scale=RECIPE_EPOCHS / networks.schedule.epochs)
    every = tuple(flag for flags in RECIPE_PARTS.values() for flag in flags)
    teacher, rows = networks.path(FLOAT_BITS, seeds[0]), []
    for bit in (3, 2):
        before, start = networks.chain(bit + 1, seeds[0]), networks.path(bit + 1, seeds[0])
        for name, flags in {"published": (), **RECIPE_PARTS, "teacher": (), "all": every}.items():
            taught = teacher if name in ("teacher", "all") else None
            chains = ((*before, short.trained(bit, seed, start, flags, taught, f"{name}-")) for seed in seeds)
            rows.append(Row(short, bit, "ANN", name, tuple(chains)))
    return rows


def latency(networks: Networks, seeds: list[int]) -> list[Row]:
    """Return accuracy against latency: the first T' of T steps, all from one run, and delays of 0 to T."""
    rows = []
    for bit in (4, 3, 2):
        full = time_steps(bit)
        for neuron in NEURONS:
            row = partial(spiking, networks, bit, neuron, seeds)
            rows += [row(f"{steps} of {full} steps", AS_IT_IS, steps) for steps in range(1, full)] + [row("converted", AS_IT_IS)]
            rows += [row(f"delay {delay}", once(Source.delayed, delay)) for delay in range(1, full + 1)]
    return rows


def rows_of(table: str, seeds: list[int], data: Path, study: Path, scale: float = 1.0, extra: tuple[str, ...] = (),
            files: Path | None = None, start: Path | None = None) -> list[Row]:
    """Return the rows of a table; for the arguments see `Networks`; `files` is for tables of one architecture only."""
    make = partial(Networks, data=data, study=study, scale=scale, extra=extra)
    if table in ARCHS:
        return [row for arch in ARCHS[table] for row in main_table(make(arch, dataset=table), seeds)]
    if table == "elsewhere":
        return [row for arch in ELSEWHERE for row in elsewhere(make(arch, chosen=(FLOAT_BITS, 3), rate=ELSEWHERE_RATE), seeds)]
    if table in ("fast", FROM_FLOAT):
        return fast(make("resnet20", recipe="fast", start=None if table == "fast" else start or FLOAT_FILE), seeds)
    networks = make("resnet20", files=files)
    return {"recipe": recipe, "ablation": ablation, "conversion": conversion, "latency": latency}[table](networks, seeds)
