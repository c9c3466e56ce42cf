"""The subject of a report: a run, a stage of reproduce.py, or a checkpoint, with the tuned networks that belong to it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models import Network
from quant import FLOAT_BITS, time_steps
from snn_layers import HALF, NEURONS, Neuron, checked, neuron_of, to_spiking

from ..checkpoints.checkpoint import BEST, LAST, SUFFIX, read_checkpoint, recorded, restore_network, run_name, tunings, untuned
from ..checkpoints.resume import no_start
from ..checkpoints.rundir import LOG, PAGES
from ..errors import UserError


@dataclass
class Tuned:
    """A tuned network: its name, spiking network, log, file."""

    name: str
    snn: Network
    history: list[dict[str, Any]]
    path: Path


@dataclass
class Subject:
    """A trained network and its tuned ones.

    Attributes:
        title: of the page.
        page: its default path.
        path, contents: the checkpoint.
        notes: for the reader.
        kinds: the neurons to convert it to, by name.
    """

    title: str
    page: Path
    path: Path
    contents: dict[str, Any]
    network: Network
    tuned: list[Tuned] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kinds: Mapping[str, Neuron] = field(default_factory=lambda: NEURONS)

    @property
    def quantized(self) -> bool:
        """Return whether the network can be converted."""
        return self.network.bit != FLOAT_BITS


def checkpoint_of(run: Path) -> Path:
    """Return the checkpoint of a run directory, of a stage's directory, or the file itself.

    Raises:
        UserError: there is none, or there are several.
    """
    if not run.exists():
        raise UserError(f"{run} does not exist: train it first, or correct the path")
    if run.is_file():
        return run
    found = [run / BEST] if (run / BEST).is_file() else sorted(run.glob(f"*/{BEST}"))
    if len(found) != 1:
        last = ", only an unfinished run's checkpoint" if list(run.glob(f"**/{LAST}")) and not found else ""
        names = ", ".join(map(str, found)) or f"no {BEST}{last}"
        raise UserError(f"{run} holds {names}: name the directory of one run that trains or tunes, or its {BEST}")
    return found[0]


def known_neurons(own: str | None) -> Mapping[str, Neuron]:
    """Return signed and unsigned neurons by name, and those of a user's FILE.py:FUNCTION."""
    if own is None:
        return NEURONS
    if own in NEURONS:
        raise UserError(f"--neuron {own}: signed and unsigned neurons are measured anyway; name FILE.py:FUNCTION, or leave it out")
    try:
        kind = neuron_of(own)
    except ValueError as error:
        raise UserError(f"--neuron: {error}") from error
    return {**NEURONS, kind.name: kind}


def read_subject(run: Path, arch: str | None = None, kinds: Mapping[str, Neuron] = NEURONS, bit: int | None = None) -> Subject:
    """Return the subject of a report of `run`; for a tuning, the network that it came from, with this tuning.

    Args:
        arch: of a published file, or of a network from a user's file, FILE.py:FUNCTION; what a checkpoint names is never imported.
        kinds: the neurons that are known, by name.
        bit: of a published quantized file, which does not hold it.
    """
    path = checkpoint_of(run)
    contents = read_checkpoint(path)
    network = restore_network(contents, path, arch, bit, as_it_is=True)
    page = run / PAGES[0] if run.is_dir() else run.with_name(run.name.removesuffix(SUFFIX) + ".html")
    title = f"{network.arch}, {path.parent.name if path.name == BEST else path.name.removesuffix(SUFFIX)}"
    if "finetune" not in contents:
        subject = Subject(title, page, path, contents | {"history": history_of(path, contents)}, network, kinds=kinds)
        found = [read_tuned(file, arch, kinds) for file in (tuned_files(path, network) if subject.quantized else [])]
        others = {one.path: reason for one in found if (reason := no_start(one.path, one.snn, network)) is not None}
        subject.tuned = told_apart(one for one in found if one.path not in others)
        subject.notes = [f"{reason}: it is left out." for reason in others.values()]
        return subject
    tuned, start = read_tuned(path, arch, kinds), untuned(path)
    found = f"The network that this one was tuned from, {start}, is not here"
    if start.is_file():
        original = read_checkpoint(start)
        ann = restore_network(original, start, arch or tuned.snn.arch, tuned.snn.bit)
        if (found := no_start(path, network, ann)) is None:
            original = original | {"history": history_of(start, original)}
            return Subject(title, page, start, original, ann, [tuned], kinds=kinds)
    return Subject(title, page, path, contents, network, [tuned], [f"{found}: the tuned weights serve as the ANN."], kinds)


def history_of(path: Path, contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the log of a checkpoint's run, which goes on after its best epoch; without a run that of the checkpoint."""
    log, history = path.with_name(LOG), contents.get("history", [])
    if path.name != BEST or not log.is_file():
        return history
    try:
        whole = [json.loads(line) for line in log.read_text().splitlines()]
    except ValueError:  # damaged; the checkpoint has its part of it
        return history
    return whole if whole[:len(history)] == history else history


def read_tuned(path: Path, arch: str | None, kinds: Mapping[str, Neuron]) -> Tuned:
    """Return a tuned network with its neurons; its name says the neurons and all its tunings."""
    found, _ = tunings(path)
    contents = found[-1]
    summary = contents["finetune"]
    neuron = summary["neuron"]
    if neuron not in kinds:
        raise UserError(f"{path} was tuned for {neuron} neurons, whose equation it does not hold: add --neuron FILE.py:{neuron}, "
                        "or take the file away from there")
    ann, start = restore_network(contents, path, arch), summary.get("start", HALF)
    try:
        kind = checked(kinds[neuron], summary["delay"], start)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    snn = to_spiking(ann, kind, summary["delay"], summary.get("steps"), start)
    others = [(snn.delay, 0, f", delay {snn.delay}"), (snn.start, HALF, f", start {snn.start:g}"),
              (snn.time_steps, time_steps(snn.bit), f", {snn.time_steps} steps")]
    done = [how for tuning in found for how in methods(tuning)]
    name = ", ".join([neuron, *done]) + "".join(text for value, usual, text in others if value != usual)
    return Tuned(name, snn, contents.get("history", []), path)


def methods(contents: dict[str, Any]) -> list[str]:
    """Return the steps of a tuning, in order."""
    args = recorded(contents)
    how = {"global": "global", "layerwise": "layer-wise", "through-time": "through time"}.get(args.get("method"), "tuned")
    return [*["calibrated"] * bool(args.get("calibrate")), how]


def told_apart(tuned: Iterable[Tuned]) -> list[Tuned]:
    """Return the tunings; those of the same name, for example of several seeds, get the end of their path."""
    tuned = list(tuned)
    names = Counter(one.name for one in tuned)

    def place(path: Path) -> str:
        return "/".join(path.parts[-3:-1]) if path.name == BEST else path.name

    return [replace(one, name=f"{one.name}, {place(one.path)}") if names[one.name] > 1 else one for one in tuned]


def tuned_files(path: Path, network: Network) -> list[Path]:
    """Return the tuned networks beside a quantized one: of this directory, of the stages of its group, or `_ft` files."""
    name = run_name(network.arch, network.bit)
    if path.name != BEST:
        return sorted(path.parent.glob(f"{path.name.removesuffix(SUFFIX)}_ft*{SUFFIX}"))
    near = sorted(path.parent.parent.glob(f"{name}_ft*/{BEST}"))
    stages = sorted(path.parent.parent.parent.glob(f"{network.bit}bit-*/{name}_ft*/{BEST}"))
    files = [file for file in dict.fromkeys((*near, *stages)) if not file.parent.name.endswith("_test")]
    return [file for file in files if untuned(file).resolve() == path.resolve()]
