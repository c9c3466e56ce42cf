"""The networks of the scripts: loaded, placed, converted, calibrated, deployed."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import models
from models import Network
from quant import FLOAT_BITS, fit_, learn_, outputs, quantize_, time_steps
from snn_layers import HALF, NEURONS, Deployed, LayerMonitor, calibrate_rates_, deploy, neuron_of, norm_steps, to_spiking
from snn_layers.deployment.units import share_current_

from ..checkpoints.checkpoint import BEST, load_network, network_state, read_checkpoint, refuse_unnamed, restore_network, untuned
from ..checkpoints.resume import no_start
from ..checkpoints.rundir import RunDirectory, path_of, plain
from ..config import RunSettings
from ..data.batches import Batches
from ..data.splits import Data
from ..distributed.processes import agree_
from ..errors import UserError
from ..settings import Settings, SpikeSettings

COMPILED_FROM, COMPILED_STEPS = 5_000, 15  # compiling a neuron, or deploying an ANN, pays from so many images, up to so many steps
NOTICED = 3.0  # seconds of compiling after which a line says so


def init_path(run: RunSettings) -> Path:
    """Return --init, or the best checkpoint of the run with --arch and --bit."""
    return run.init or path_of(run) / BEST


def usable(contents: dict[str, Any], file: Path, arch: str | None, bit: int | None, data: Data) -> Network:
    """Return the network of a checkpoint, to be used as it is.

    Raises:
        UserError: another network, a start for training only, or other classes.
    """
    return data.check(restore_network(contents, file, arch, bit, data.settings.dataset, as_it_is=True), file)


def load_usable(run: RunSettings, data: Data) -> tuple[Network, dict[str, Any]]:
    """Load the network to evaluate or convert, and the contents of its checkpoint; see `init_path` and `usable`."""
    path = init_path(run)
    contents = read_checkpoint(path)
    return usable(contents, path, run.arch, run.bit, data), contents


def load_teacher(settings: Settings, data: Data) -> Network:
    """Load the network whose probabilities are learned, placed and in eval mode; a published file is a float one.

    Raises:
        UserError: it cannot be loaded, is a start for training only, or has other classes or another normalisation of pixels.
    """
    file, student = settings.training.teacher, settings.run.arch
    contents, normalisation = read_checkpoint(file), data.normalisation()
    ours = "format" in contents
    other = ours and not models.same(student, str(contents.get("arch")))
    arch = settings.training.teacher_arch or (None if other else student)
    refuse_unnamed(file, contents, arch, "--teacher-arch")
    teacher = usable(contents, file, arch, None if ours else FLOAT_BITS, data)
    known = teacher.facts.mean, teacher.facts.std
    if known not in (normalisation, (None, None)):
        raise UserError(f"--teacher {file}: was trained on pixels with --mean and --std {known}, not {normalisation}: pass "
                        "its values, or choose another teacher")
    return data.placed(teacher).eval().requires_grad_(False)


def load_quantized(settings: Settings, data: Data, learns: bool = False) -> tuple[Network, Network, dict[str, Any] | None]:
    """Load the network to convert, or make it with --fit; return it, its ANN, and the summary of its tuning, if it is tuned.

    Args:
        learns: the network learns from the ANN, so that the tuned weights cannot replace it.
    """
    run = settings.run
    if run.bit == FLOAT_BITS:
        raise UserError("32 bits are float and cannot spike: pass the bits of a quantized checkpoint, --bit 2 to 8; of a float one "
                        "--bit 4 --fit 512 makes a quantized network, and main.py --bit 4 --init FILE trains it")
    if settings.spiking.fit:
        network = fitted(settings, data)
        return network, network, None
    network, contents = load_usable(run, data)
    network = data.placed(network)
    if "finetune" not in contents:
        return network, network, None
    if not learns and (other := other_neurons(settings.spiking, contents["finetune"], run.bit)):
        print(f"{init_path(run)} was tuned with {other}: that scores it as such", file=sys.stderr)
    return network, data.placed(original(run, data, network, learns) or network), contents["finetune"]


def other_neurons(how: SpikeSettings, tuned: dict[str, Any], bit: int) -> str:
    """Return the flags with which a network is scored as it was tuned, as far as they are others; empty if there are none."""
    name, full = tuned.get("neuron"), time_steps(bit)
    ours = {"neuron": how.neuron.rpartition(":")[2], "delay": how.delay, "start": how.start, "steps": how.steps or full}
    theirs = {"delay": 0, "start": HALF, "steps": full, **tuned}
    flags = {"neuron": f"{'FILE.py:' * (name not in NEURONS)}{name}", **{flag: f"{theirs[flag]:g}" for flag in list(ours)[1:]}}
    return " ".join(f"--{flag} {flags[flag]}" for flag in ours if theirs.get(flag) not in (None, ours[flag]))


def fitted(settings: Settings, data: Data) -> Network:
    """Quantize the float network of --init, fit it on --fit training images, save it as a run of its own.

    Raises:
        UserError: no --init, a network that is not float, not usable, or has other classes, or a run that is there already.
    """
    run, count = settings.run, settings.spiking.fit
    if run.init is None:
        raise UserError(f"--fit {count}: quantizes a float network; name its file with --init")
    with RunDirectory.opened(run, settings.suffix, lambda *_: None) as directory:  # restarted by torchrun it fits again
        began = time.monotonic()
        network = usable(read_checkpoint(run.init), run.init, run.arch, FLOAT_BITS, data)
        images = data.batches(train=True, limit=count * data.place.world).first(count)  # each process reads its part of them
        targets = outputs(data.placed(network), images)
        try:
            network = learn_(fit_(data.placed(quantize_(network, run.bit, settings.spiking.weight_bit)), images), images, targets)
        except ValueError as error:
            raise UserError(f"--fit {count}: {error}; take more images") from error
        agree_(network)
        directory.begin(settings, [])
        directory.save(network_state(data.described(network)) | {"args": plain(settings)}, [], is_best=True)
    print(f"quantized to {run.bit} bits and fitted on {len(images)} training images in {time.monotonic() - began:.1f} s: "
          f"{directory.path / BEST}")
    return network.eval()


def original(run: RunSettings, data: Data, tuned: Network, needed: bool) -> Network | None:
    """Load the ANN from which a tuned network, that of `init_path`, was made.

    None if its file is missing, or holds another network by now: a line says that the tuned weights serve as the ANN, a worse one.

    Raises:
        UserError: there is none, but `needed`.
    """
    path = init_path(run)
    start = untuned(path)
    if start.is_file():
        ann = data.check(load_network(start, run.arch, run.bit, data.settings.dataset), start)
        found = no_start(path, tuned, ann)
    else:
        found = f"{start}, which {path} was tuned from, is not here"
    if found is None:
        return ann
    if needed:
        raise UserError(f"{found}: tuning learns from it; put it there, or tune from a quantized network")
    print(f"{found}: the tuned weights serve as the ANN, which is worse for it")
    return None


def spiking(how: SpikeSettings, ann: Network) -> Network:
    """Convert a quantized network."""
    try:
        return to_spiking(ann, neuron_of(how.neuron, how.delay, how.start), how.delay, how.steps, how.start)
    except ValueError as error:
        raise UserError(str(error)) from error


def calibrate(count: int, snn: Network, ann: Network, batches: Batches) -> float:
    """Calibrate the rates on `count` augmented training images; return the seconds that it took."""
    began, images = time.monotonic(), batches.first(count)
    calibrate_rates_(snn, ann, images)
    agree_(snn)
    seconds = time.monotonic() - began
    print(f"calibrated on {len(images)} training images in {seconds:.1f} s")
    return seconds


def compiles(snn: Network, batches: Batches, run: RunSettings) -> bool:
    """Return whether compiling the neuron pays for these batches."""
    return batches.count >= COMPILED_FROM and snn.time_steps <= COMPILED_STEPS and not run.test


def fast_pair(snn: Network, ann: Network, batches: Batches, settings: Settings) -> tuple[Network | Deployed, Network | Deployed]:
    """Return what evaluates `snn`, see `fast`, and `ann` beside it: deployed too where that pays and no part runs in float64."""
    plain = settings.spiking.reference or settings.run.amp or norm_steps(ann) is not None
    deployed = None if plain or not compiles(snn, batches, settings.run) else deploy(ann)
    if deployed is None or deployed.exact_units():
        return fast(snn, batches, settings), ann
    network = deployed_for(snn, batches, settings)
    share_current_(deployed.body[0], network.body[0])
    with LayerMonitor(deployed, network) if settings.spiking.statistics else nullcontext():
        compile_([deployed, network], batches)
    return network, deployed


def fast(snn: Network, batches: Batches, settings: Settings) -> Network | Deployed:
    """Return `snn` for evaluation on these batches: deployed, and compiled where that pays; with --reference itself."""
    if settings.spiking.reference:
        return snn
    network = deployed_for(snn, batches, settings)
    if compiles(snn, batches, settings.run):
        compile_([network], batches)
    return network


def deployed_for(snn: Network, batches: Batches, settings: Settings) -> Deployed:
    """Return `snn` deployed, not compiled yet."""
    network = deploy(snn, compile=compiles(snn, batches, settings.run))
    if network.plain:
        print(f"{snn.neuron} neurons run by their equation, in float64: no fused pass fires the same", file=sys.stderr)
    return network


def compile_(networks: list[Deployed], batches: Batches) -> None:
    """Compile what deployed networks run on these batches, on a GPU; say how long it took, if it is worth a word.

    For a CPU there is C++, which takes three seconds once.
    """
    if not next(networks[-1].buffers()).is_cuda:
        return
    began = time.monotonic()
    for part in networks[-1].parts(batches.first(2 * networks[-1].fitting_chunk(batches.first(1)))):
        for network in networks:
            network(part)
    seconds = time.monotonic() - began
    if seconds > NOTICED:
        print(f"neurons compiled in {seconds:.0f} s; the next run finds them", file=sys.stderr)
