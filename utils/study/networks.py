"""The networks of a table, and the stages that train, convert and tune them."""

from dataclasses import dataclass
from pathlib import Path

from models import label
from quant import FLOAT_BITS, time_steps

from ..checkpoints.checkpoint import BEST, read_checkpoint, recorded, run_name
from ..settings import recipe_flags, words
from .stages import Stage

IMAGES = {"cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}  # of the training and the test set
CALIB = 5_000  # images of layer-wise tuning, one epoch a unit
PUBLISHED_TUNING = {"cifar10": 8, "imagenet": 1}  # epochs a unit of the published commands, over all training images
TIME_EPOCHS = {"unsigned": {4: 2, 3: 6, 2: 10}, "signed": {4: 1, 3: 2, 2: 4}}  # through time, by bits: their time grows with T
TIME_RATE = {"unsigned": (), "signed": ("--lr", "2e-3")}  # signed neurons start near their ANN, and lose it at a larger rate
NEURONS = {"signed": (), "unsigned": ("-u",)}
CALIBRATE = ("--calibrate", "512")
QUANTIZED, COMPILED = 1.5, 1.2  # cost of a quantized training step, and of one with --compile, in float steps
TAUGHT = (4, 3)  # bits at which the fast recipe learns the float network's probabilities instead of the labels
STEP = 0.5  # cost of a time step of a deployed spiking network, in float forward passes


@dataclass(frozen=True)
class Schedule:
    """A published training.

    Attributes:
        epochs: of each stage.
        rates: learning rate at each bit-width, in order; ImageNet's first stage starts from TorchVision's float network.
        decays: weight decay at each bit-width.
        batch: flags of the batch: as many images an update as published, by 256 at a time.
    """

    epochs: int
    rates: dict[int, str]
    decays: dict[int, str]
    batch: tuple[str, ...] = ()


OF_1024 = ("-b", "256", "--accum", "4")
SCHEDULES = {"cifar10": Schedule(300, {FLOAT_BITS: "0.1", 4: "0.04", 3: "0.04", 2: "0.04"},
                                 {FLOAT_BITS: "5e-4", 4: "1e-4", 3: "1e-4", 2: "3e-5"}),
             "imagenet": Schedule(60, {4: "0.025", 3: "0.0025", 2: "0.0025"}, dict.fromkeys((4, 3, 2), "1e-4"), OF_1024)}
# ImageNet, APoT (ICLR 2020).
DECAY = {**dict.fromkeys((5, 4, 3), "1e-4"), 2: "2e-5"}
RESNETS = {"torchvision:resnet18": Schedule(100, {5: "0.01", 4: "0.01", 3: "0.01", 2: "0.04"}, DECAY, OF_1024),
           "torchvision:resnet34": Schedule(100, {5: "0.1", 4: "0.1", 3: "0.1", 2: "0.1"}, DECAY, OF_1024),
           "torchvision:resnet50": Schedule(100, {4: "0.05", 3: "0.05"}, DECAY, ("-b", "256", "--accum", "2"))}


def with_flags(name: str, flags: tuple[str, ...]) -> str:
    """Return a name that tells the flags, as "resnet20-45epochs-amp-compile"."""
    return "-".join([name, *(flag.lstrip("-") for flag in flags)])


@dataclass(frozen=True)
class Networks:
    """The networks of an architecture, trained here as a chain of bit-widths, or read from files.

    Attributes:
        data: where the data set is.
        study: where the stages are.
        scale: epochs of each stage of the chain, as a part of the published number; below 1 with a cosine schedule.
        extra: more flags of training, and of tuning through time, --amp and --compile.
        files: a directory with {arch}_{bit}bit.pth.tar; None trains.
        chosen: bit-widths of the chain, each of which starts from the one before; None: the published ones of the data set.
        rate: learning rates of the chain, as a part of the published ones.
        recipe: of the trainings, see `main.py --recipe`.
        start: a float network that somebody else has trained, from which the chain starts; None trains it here.
    """

    arch: str
    data: Path
    study: Path
    dataset: str = "cifar10"
    scale: float = 1.0
    extra: tuple[str, ...] = ()
    files: Path | None = None
    chosen: tuple[int, ...] | None = None
    rate: float = 1.0
    recipe: str = "published"
    start: Path | None = None

    @property
    def schedule(self) -> Schedule:
        """Return the published training."""
        return RESNETS.get(self.arch, SCHEDULES["imagenet"]) if self.dataset == "imagenet" else SCHEDULES[self.dataset]

    @property
    def bits(self) -> tuple[int, ...]:
        """Return the bit-widths of the chain."""
        return self.chosen or tuple(bit for bit in self.schedule.rates if bit != FLOAT_BITS or self.start is None)

    @property
    def epochs(self) -> int:
        """Return the epochs of each stage of a chain that is trained as published."""
        return max(1, round(self.schedule.epochs * self.scale))

    def training_flags(self, bit: int) -> tuple[str, ...]:
        """Return the flags of the schedule with which a network with `bit` bits is trained."""
        rate = self.schedule.rates[bit] if self.rate == 1 else f"{self.rate * float(self.schedule.rates[bit]):g}"
        shape = "step" if self.epochs == self.schedule.epochs else "cosine"
        values = recipe_flags(self.recipe, bit) or {"epochs": str(self.epochs), "lr": rate, "wd": self.schedule.decays[bit],
                                                    "lr_schedule": shape}
        return words(values)

    def trained_for(self, bit: int) -> str:
        """Return the epochs of the training with `bit` bits beside the published number; for a file without them, its directory."""
        full, path = self.schedule.epochs, self.path(bit, 0)
        if self.files is None:
            epochs = int(self.training(bit, 0).flag("--epochs"))
        elif (epochs := recorded(read_checkpoint(path)).get("epochs") if path.is_file() else None) is None:
            return f"see {self.files}"
        return (str(full) if epochs == full else f"{epochs} of {full}") + f", {self.recipe}" * (self.recipe != "published")

    def extra_of(self, bit: int) -> tuple[str, ...]:
        """Return the flags of `extra` that change the training of a network with `bit` bits."""
        return tuple(flag for flag in self.extra if bit != FLOAT_BITS or flag != "--compile")  # nothing in it is compiled

    def group(self, bit: int) -> str:
        """Return the directory, in the study, of the stages with `bit` bits; stages of other networks have another one."""
        if self.files is not None:
            return f"{self.arch}-{self.files.name}"
        kind = f"{self.epochs}epochs" if self.recipe == "published" else self.recipe
        origin = "" if self.start is None else f"-from-{self.start.name.split('.')[0]}"
        return with_flags(f"{label(self.arch)}-{kind}{origin}", self.extra_of(bit))

    @property
    def place(self) -> tuple[str, ...]:
        """Return the flags that name the data set."""
        return ("--data", str(self.data)) if self.dataset == "cifar10" else (str(self.data),)

    def stage(self, name: str, script: str, bit: int, flags: tuple[str, ...], init: Path | None, trained: float = 0,
              passes: float = 0, teacher: Path | None = None) -> Stage:
        """Return a stage of this architecture, {bit}bit-{name}; for the other arguments see `Stage`."""
        name, flags = f"{self.group(bit)}/{bit}bit-{name}", ("--arch", self.arch, "--bit", str(bit), *flags)
        return Stage(name, script, flags, init, self.place, self.arch, self.dataset, trained, passes, teacher)

    def training(self, bit: int, seed: int) -> Stage:
        """Return the training of one bit-width, which starts from the one before."""
        before = self.path(self.bits[self.bits.index(bit) - 1], seed) if bit != self.bits[0] else self.start
        taught = self.recipe == "fast" and bit in TAUGHT
        return self.trained(bit, seed, before, (), self.path(FLOAT_BITS, seed) if taught else None)

    def trained(self, bit: int, seed: int, start: Path | None, own: tuple[str, ...], teacher: Path | None, kind: str = "") -> Stage:
        """Return the training of a network with `bit` bits from a file; `kind` names the flags that it has more than others."""
        train, test = IMAGES[self.dataset]
        flags = (*self.training_flags(bit), "--seed", str(seed), *self.schedule.batch, *self.extra_of(bit), *own)
        epochs, script = int(flags[flags.index("--epochs") + 1]), "main" if self.dataset == "cifar10" else "dali_main"
        factor = 1 if bit == FLOAT_BITS else COMPILED if "--compile" in flags else QUANTIZED
        passes = epochs * (test + (teacher is not None) * train)
        return self.stage(f"{kind}seed{seed}", script, bit, flags, start, epochs * train * factor, passes, teacher)

    def chain(self, bit: int, seed: int) -> tuple[Stage, ...]:
        """Return the stages that make the network with `bit` bits, in order; none if it is read from a file."""
        if self.files is not None:
            return ()
        return tuple(self.training(earlier, seed) for earlier in self.bits[:self.bits.index(bit) + 1])

    def path(self, bit: int, seed: int) -> Path:
        """Return the file of the network with `bit` bits."""
        if self.files is not None:
            return self.files / f"{self.arch}_{bit}bit.pth.tar"
        if self.start is not None and bit == FLOAT_BITS:
            return self.start
        return self.study / self.group(bit) / f"{bit}bit-seed{seed}" / run_name(self.arch, bit) / BEST


@dataclass(frozen=True)
class Source:
    """A quantized network to be converted, with one kind of neuron and one seed: makes the stages of its spiking network."""

    networks: Networks
    bit: int
    neuron: str
    seed: int = 0
    network: Path | None = None  # None: that of `networks`

    @property
    def spiking_pass(self) -> float:
        """Return the cost of a spiking pass of T steps, in float passes."""
        return time_steps(self.bit) * STEP

    def stage(self, script: str, kind: str, passes: float, flags: tuple[str, ...], trained: float = 0) -> Stage:
        """Return a stage whose directory is named for bits, neuron, kind and seed."""
        init = self.network or self.networks.path(self.bit, self.seed)
        flags = (*NEURONS[self.neuron], "--seed", str(self.seed), *flags)
        return self.networks.stage(f"{self.neuron}-{kind}-seed{self.seed}", script, self.bit, flags, init, trained, passes)

    def evaluated(self, kind: str, *flags: str, delay: int = 0) -> Stage:
        """Return a run of snn.py on the test set."""
        passes = IMAGES[self.networks.dataset][1] * (1 + self.spiking_pass + delay * STEP)
        return self.stage("snn", kind, passes, ("-e", *flags))

    def delayed(self, delay: int) -> Stage:
        """Return a run of snn.py whose neurons wait `delay` steps."""
        return self.evaluated(f"delay{delay}", "--delay", str(delay), delay=delay)

    def layerwise(self, kind: str, *flags: str) -> Stage:
        """Return a run of layer-wise tuning."""
        test = IMAGES[self.networks.dataset][1]
        passes = CALIB * (6 + 3 * self.spiking_pass) + test * (1 + 2 * self.spiking_pass)
        return self.stage("snn_ft", kind, passes, ("--calib", str(CALIB), *flags))

    def whole(self, kind: str, *flags: str) -> Stage:
        """Return a run of global tuning."""
        count = 40_000 if self.bit == 2 else 20_000  # with fewer steps there is more to gain
        test = IMAGES[self.networks.dataset][1]
        passes = count * (4 + self.spiking_pass) + test * (1 + 2 * self.spiking_pass)
        return self.stage("snn_ft", kind, passes, ("--method", "global", "--teacher", "--calib", str(count), *flags))

    def unrolled(self, kind: str, *flags: str) -> Stage:
        """Return a run of tuning through time, with the flags of trainings."""
        train, test = IMAGES[self.networks.dataset]
        epochs, extra = TIME_EPOCHS[self.neuron][self.bit], self.networks.extra
        trained = epochs * train * time_steps(self.bit) * (COMPILED if "--compile" in extra else QUANTIZED)
        flags = ("--method", "through-time", "--epochs", str(epochs), *TIME_RATE[self.neuron], *flags, *extra)
        return self.stage("snn_ft", with_flags(kind, extra), (epochs + 2) * test * self.spiking_pass, flags, trained)
