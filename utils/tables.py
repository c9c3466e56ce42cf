"""The tables of `reproduce.py`: rows, and the stages that each row takes."""

from dataclasses import dataclass
from pathlib import Path

from quant import time_steps

from .checkpoint import BEST
from .stages import Stage

TEST, CALIB = 10_000, 5_000  # images of the test set, and of layer-wise tuning
NEURONS = {"signed": (), "unsigned": ("-u",)}
CALIBRATE = ("--calibrate", "512")
ARCH = "resnet20"


@dataclass(frozen=True)
class Row:
    """One figure of a table: the accuracy of a `bit`-bit network with `neuron`s after `method`.

    Attributes:
        stages: those that measure it, one a seed.
        before: those that they start from.
    """

    bit: int
    neuron: str
    method: str
    stages: tuple[Stage, ...]
    before: tuple[Stage, ...] = ()

    @property
    def name(self) -> str:
        """Return what --rows looks for."""
        return f"{self.bit} bits, {self.neuron}, {self.method}"


@dataclass(frozen=True)
class Source:
    """A quantized network of CIFAR-10 that is converted; makes the stages of its rows."""

    bit: int
    neuron: str
    network: Path
    data: Path

    @property
    def spiking_pass(self) -> float:
        """Return what a spiking pass costs, in float ones."""
        return time_steps(self.bit) / 2

    def stage(self, script: str, kind: str, seed: int, passes: float, flags: tuple[str, ...]) -> Stage:
        """Return a stage whose directory is named for bits, neuron, kind and seed."""
        common = ("--arch", ARCH, "--bit", str(self.bit), "--data", str(self.data), "--init", str(self.network))
        name = f"{self.bit}bit-{self.neuron}-{kind}-seed{seed}"
        return Stage(name, script, (*common, *NEURONS[self.neuron], "--seed", str(seed), *flags), passes)

    def evaluated(self, kind: str, *flags: str, seed: int = 0) -> Stage:
        """Return a run of snn.py on the test set."""
        return self.stage("snn", kind, seed, TEST * (1 + self.spiking_pass), ("-e", *flags))

    def layerwise(self, kind: str, *flags: str, seed: int = 0) -> Stage:
        """Return a run of layer-wise fine-tuning."""
        return self.stage("snn_ft", kind, seed, CALIB * (6 + 3 * self.spiking_pass), ("--calib", str(CALIB), *flags))

    def whole(self, kind: str, *flags: str, seed: int = 0) -> Stage:
        """Return a run of global fine-tuning."""
        count = 40_000 if self.bit == 2 else 20_000  # the fewer steps, the more there is to gain
        method = ("--method", "global", "--teacher", "--calib", str(count))
        return self.stage("snn_ft", kind, seed, count * (4 + self.spiking_pass), (*method, *flags))


def conversion(seeds: list[int], data: Path, study: Path, published: Path = Path("result/published")) -> list[Row]:
    """Return the way of ResNet-20 on CIFAR-10 from the quantized ANN to a spiking network without loss."""
    rows = []
    for bit in (4, 3, 2):
        for neuron in NEURONS:
            source = Source(bit, neuron, published / f"{ARCH}_{bit}bit.pth.tar", data)
            rows += converted(source, seeds) + (tuned(source, study) if bit < 4 else [])
    return rows


def converted(source: Source, seeds: list[int]) -> list[Row]:
    """Return the rows without training."""
    full, half = time_steps(source.bit), 2 ** (source.bit - 1)

    def row(method: str, *stages: Stage) -> Row:
        return Row(source.bit, source.neuron, method, stages)

    rows = [row("converted", source.evaluated("converted")),
            row("calibrated", *(source.evaluated("calibrated", *CALIBRATE, seed=seed) for seed in seeds))]
    if source.bit < 4 and source.neuron == "signed":
        rows += [row(f"delay {delay}", source.evaluated(f"delay{delay}", "--delay", str(delay))) for delay in (1, 2, full)]
        rows.append(row(f"calibrated, {half} of {full} steps", source.evaluated(f"steps{half}", "--steps", str(half), *CALIBRATE)))
    return rows


def tuned(source: Source, study: Path) -> list[Row]:
    """Return the rows of fine-tuning, whose cost allows one seed."""
    first = source.layerwise("layerwise")
    result = study / first.name / f"{ARCH}_{source.bit}bit_ft" / BEST
    both = Source(source.bit, source.neuron, result, source.data).whole("layerwise-global")

    def row(method: str, stage: Stage, *before: Stage) -> Row:
        return Row(source.bit, source.neuron, method, (stage,), before)

    rows = [row("calibrated, global", source.whole("calibrated-global", *CALIBRATE))]
    if source.neuron == "signed":
        rows += [row("layer-wise", first), row("global", source.whole("global")), row("layer-wise, global", both, first)]
    return rows
