"""The networks that the scripts work on: loaded, placed, converted, calibrated, made fast."""

import sys
import time
from pathlib import Path
from typing import Any

from models import Network
from quant import FLOAT_BITS
from snn_layers import Deployed, calibrate_rates_, deploy, to_spiking

from ..checkpoints.checkpoint import BEST, load_network, read_checkpoint, restore_network, run_name, untuned
from ..config import RunSettings
from ..data.splits import Data, Loader
from ..distributed.processes import agree_
from ..errors import UserError
from .settings import Settings, SpikeSettings

COMPILED_FROM, COMPILED_STEPS = 5_000, 15  # images from which, and steps up to which, compiling the neuron pays
NOTICED = 3.0  # seconds


def init_path(run: RunSettings) -> Path:
    """Return --init, or the best checkpoint of the run with --arch and --bit."""
    return run.init or run.result / run_name(run.arch, run.bit) / BEST


def load_usable(run: RunSettings, data: Data) -> tuple[Network, dict[str, Any]]:
    """Load the network that is to be evaluated or converted, and the contents of its checkpoint; see `init_path`.

    Raises:
        UserError: nothing to load, a file that serves as a start for training only, or one for other classes.
    """
    path = init_path(run)
    contents = read_checkpoint(path)
    network = restore_network(contents, path, run.arch, run.bit, data.settings.dataset)
    if network.trainable_start:
        raise UserError(f"checkpoint {path} lacks thresholds or statistics of its own, as APoT's and TorchVision's files do: "
                        f"train it first, --init {path}")
    return data.check(network, path), contents


def load_teacher(file: Path, run: RunSettings, data: Data) -> Network:
    """Load the network whose probabilities are learned, placed and in eval mode; a published file is one of --arch in float.

    Raises:
        UserError: it cannot be loaded, is a start for training only, or has other classes.
    """
    contents = read_checkpoint(file)
    ours = "format" in contents
    teacher = restore_network(contents, file, None if ours else run.arch, None if ours else FLOAT_BITS, data.settings.dataset)
    if teacher.trainable_start:
        raise UserError(f"--teacher {file}: lacks thresholds or statistics of its own; train it first, or name a float network")
    return data.placed(data.check(teacher, file)).eval().requires_grad_(False)


def load_quantized(run: RunSettings, data: Data, learns: bool = False) -> tuple[Network, Network, dict[str, Any] | None]:
    """Load the network that is to be converted; return it, its ANN, and what tuned it, where it is fine-tuned.

    Args:
        learns: the ANN is what is learned from, so that tuned weights may not serve in its place.
    """
    if run.bit == FLOAT_BITS:
        raise UserError("--bit 32 is float and cannot spike: pass the bits of the checkpoint, --bit 2 to 8")
    network, contents = load_usable(run, data)
    network = data.placed(network)
    if "finetune" not in contents:
        return network, network, None
    return network, data.placed(original(run, data, learns) or network), contents["finetune"]


def original(run: RunSettings, data: Data, needed: bool) -> Network | None:
    """Load the ANN that the fine-tuned network at `init_path` was made from.

    None where that is not here: then the tuned weights serve, no longer those of a good ANN, and a line says so.

    Raises:
        UserError: it is not here, but needed.
    """
    path = init_path(run)
    start = untuned(path)
    if not start.is_file():
        text = f"{start}, which {path} was tuned from, is not here"
        if needed:
            raise UserError(f"{text}: it is what tuning learns from; put it there, or tune from a quantized network")
        print(f"{text}: the tuned weights serve as the ANN, which is worse for it")
        return None
    return data.check(load_network(start, run.arch, run.bit, data.settings.dataset), start)


def spiking(how: SpikeSettings, ann: Network) -> Network:
    """Convert a quantized network."""
    try:
        return to_spiking(ann, how.neuron, how.delay, how.steps, how.start)
    except ValueError as error:
        raise UserError(str(error)) from error


def calibrate(count: int, snn: Network, ann: Network, batches: Loader) -> float:
    """Calibrate the rates on so many augmented training images; return the seconds that it took."""
    began = time.monotonic()
    images = batches.first(count)
    calibrate_rates_(snn, ann, images)
    agree_(snn)
    seconds = time.monotonic() - began
    print(f"calibrated on {len(images)} training images in {seconds:.1f} s")
    return seconds


def compiles(snn: Network, batches: Loader, run: RunSettings) -> bool:
    """Return whether it pays to compile the neuron for these batches."""
    return batches.count >= COMPILED_FROM and snn.time_steps <= COMPILED_STEPS and not run.test


def fast(snn: Network, batches: Loader, settings: Settings) -> Network | Deployed:
    """Return the network that evaluates `snn` on these batches: deployed, and compiled where that pays; itself with --reference."""
    if settings.spiking.reference:
        return snn
    network = deploy(snn, compile=compiles(snn, batches, settings.run))
    if compiles(snn, batches, settings.run):
        began = time.monotonic()
        network(batches.first(2 * network.fitting_chunk(batches.first(1))))
        seconds = time.monotonic() - began
        if seconds > NOTICED:
            print(f"neurons compiled in {seconds:.0f} s; the next run finds them", file=sys.stderr)
    return network
