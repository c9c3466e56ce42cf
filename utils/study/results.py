"""The rows of a table, their measured results, and the published ones."""

import statistics
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from quant import FLOAT_BITS

from .networks import IMAGES, PUBLISHED_TUNING, Networks
from .stages import TRAININGS, Stage


@dataclass(frozen=True)
class Published:
    """A published top-1 accuracy in percent, and where it is from."""

    accuracy: float
    source: str


FLOAT = "published recipe of APoT (ICLR 2020)"
APOT = f"{FLOAT}, APoT activations; ours are uniform"
FAST_SNN = "Fast-SNN, TPAMI 2023"
APOT_IMAGENET = MappingProxyType({18: {5: 70.75, 4: 70.74, 3: 69.79, 2: 66.46}, 34: {5: 74.26, 4: 74.12, 3: 73.55, 2: 71.30},
                                  50: {4: 76.80, 3: 75.92}})

# (data set, architecture, bits, neuron, method) -> published result, as far as we know.
PUBLISHED = MappingProxyType({
    ("cifar10", "resnet20", 32, "ANN", "trained"): Published(92.96, FLOAT),
    ("cifar10", "resnet20", 4, "ANN", "trained"): Published(92.45, APOT),
    ("cifar10", "resnet20", 3, "ANN", "trained"): Published(92.49, APOT),
    ("cifar10", "resnet20", 2, "ANN", "trained"): Published(90.96, APOT),
    ("cifar10", "resnet56", 32, "ANN", "trained"): Published(94.46, FLOAT),
    ("cifar10", "resnet56", 4, "ANN", "trained"): Published(93.93, APOT),
    ("cifar10", "resnet56", 3, "ANN", "trained"): Published(93.77, APOT),
    ("cifar10", "resnet56", 2, "ANN", "trained"): Published(93.05, APOT),
    ("cifar10", "resnet18", 2, "signed", "layer-wise"): Published(95.42, FAST_SNN),
    ("imagenet", "vgg16", 2, "signed", "layer-wise"): Published(71.31, FAST_SNN),
    **{("imagenet", f"torchvision:resnet{depth}", bit, "ANN", "trained"): Published(accuracy, APOT)
       for depth, rows in APOT_IMAGENET.items() for bit, accuracy in rows.items()},
})


@dataclass(frozen=True)
class Row:
    """One row of a table: the accuracy of a `bit`-bit network with `neuron`s after `method`.

    Attributes:
        chains: stages in order, one chain a seed; the last stage measures the result.
        steps: T' < T after which that stage's network is read out; None: after all T.
        neuron: "signed" or "unsigned"; or "ANN".
    """

    networks: Networks
    bit: int
    neuron: str
    method: str
    chains: tuple[tuple[Stage, ...], ...]
    steps: int | None = None

    @property
    def name(self) -> str:
        """Return the name in which --rows searches."""
        bits = "float" if self.bit == FLOAT_BITS else f"{self.bit} bits"
        return f"{self.networks.arch}, {bits}, {self.neuron}, {self.method}"

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Return the values that tell the rows of a table apart, the same as `Result.key`."""
        return self.networks.arch, self.bit, self.neuron, self.method

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages that measure the result, one a seed."""
        return tuple(chain[-1] for chain in self.chains)

    @property
    def tuning(self) -> str:
        """Return how many training images calibration and tuning see, in order; empty without them.

        Layer-wise tuning is shorter than the published one, and says so.
        """
        def seen(stage: Stage, name: str) -> str:
            count = f"{int(stage.flag(name)):,}"
            if name == "--epochs":
                return f"{count} x {IMAGES[stage.dataset][0]:,}"
            if name == "--calibrate" or stage.flag("--method"):
                return count
            images, epochs = IMAGES[stage.dataset][0], PUBLISHED_TUNING[stage.dataset]
            return f"{count} of {images:,}" + f", 1 of {epochs} epochs" * (epochs > 1)

        return " + ".join(seen(stage, name) for stage in self.chains[0] if stage.script not in TRAININGS
                          for name in ("--calibrate", "--calib", "--epochs") if stage.flag(name))


@dataclass(frozen=True)
class Result:
    """The result of a row.

    Attributes:
        accuracies: on the test set in percent, one a seed; for a training those of the best epoch.
        last: accuracies of a training's last epoch, one a seed; else empty.
        anns: of the quantized ANN, in percent, one a seed.
        latency: steps from the first input to the last output; None for an ANN.
        seconds: of training, or of calibration and tuning, one a seed.
        epochs: of its training, and the published number if that differs.
        tuning: training images that calibration and tuning saw.
        published, source: the published accuracy in percent and its source; None without one.
        stages: directories of the runs, each with its record; revisions of the code that measured them.
    """

    dataset: str
    arch: str
    bit: int
    neuron: str
    method: str
    accuracies: list[float]
    last: list[float]
    anns: list[float]
    latency: int | None
    seconds: list[float]
    epochs: str
    tuning: str
    published: float | None
    source: str | None
    stages: list[str]
    revisions: list[str]

    @property
    def key(self) -> tuple:
        """Return the values that tell the rows of a table apart."""
        return self.arch, self.bit, self.neuron, self.method

    @property
    def mean(self) -> float:
        """Return the mean accuracy over the seeds in percent."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def minutes(self) -> float:
        """Return the mean time of a seed in minutes."""
        return statistics.fmean(self.seconds) / 60

    @property
    def ann(self) -> float | None:
        """Return the mean accuracy of the quantized ANNs in percent; None for an ANN."""
        return statistics.fmean(self.anns) if self.anns else None

    @property
    def to_ann(self) -> float | None:
        """Return the mean difference to the quantized ANN in points; None for an ANN."""
        return None if self.ann is None else self.mean - self.ann


def measured(row: Row, chains: list[list[dict[str, Any]]]) -> Result:
    """Return the result of a row from the records of its stages, a chain a seed."""
    results = [records[-1]["result"] for records in chains]
    trained = row.neuron == "ANN"
    if trained:
        accuracies, last = ([result[which]["test_top1"] for result in results] for which in ("best", "last"))
        seconds, anns = [sum(record["seconds"] for record in records) for records in chains], []
    else:
        accuracies, last = [spiking_accuracy(result, row.steps) for result in results], []
        tuning = [[record["result"] for stage, record in zip(chain, records, strict=True) if stage.script not in TRAININGS]
                  for chain, records in zip(row.chains, chains, strict=True)]
        anns = [ann_accuracy(first) for first, *_ in tuning]
        seconds = [sum(result["seconds"] for result in results) for results in tuning]
    networks = row.networks
    found = PUBLISHED.get((networks.dataset, *row.key))
    return Result(networks.dataset, networks.arch, row.bit, row.neuron, row.method, accuracies, last, anns,
                  row.steps or results[0].get("latency"), seconds, networks.trained_for(row.bit), row.tuning,
                  found and found.accuracy, found and found.source, [stage.name for stage in row.stages],
                  sorted({name for records in chains for record in records for name in record["revision"].split(", ")}))


def spiking_accuracy(result: dict[str, Any], steps: int | None) -> float:
    """Return the accuracy in percent that a run of snn.py or snn_ft.py measured, after all steps or the first `steps`."""
    if steps is not None:
        return result["readout"][steps - 1]
    return result["after"] if "after" in result else result["snn"]["top1"]


def ann_accuracy(result: dict[str, Any]) -> float:
    """Return the accuracy in percent of the network that a run of snn.py or snn_ft.py converted."""
    return result["ann"] if isinstance(result["ann"], float) else result["ann"]["top1"]
