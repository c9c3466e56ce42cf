"""Checkpoints that rebuild their network: written atomically, read with weights_only."""

import subprocess
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import models
from models import Network
from quant import FLOAT_BITS, check_values, quantize_
from snn_layers import adopt_steps_

from ..errors import UserError
from ..files import replacing
from .foreign import state_of, unreadable
from .importer import load_published, load_strictly_

FORMAT = 1
RENAMED = MappingProxyType({"calib": "tune_images", "num_epochs": "epochs"})  # settings of earlier versions
SUFFIX = ".pth.tar"
LAST, BEST = "checkpoint" + SUFFIX, "model_best" + SUFFIX
HEADER = {"arch": str, "dataset": str, "num_classes": int, "bit": int, "weight_bit": int | None, "state_dict": dict}


def run_name(arch: str, bit: int, suffix: str = "") -> str:
    """Return the name of a run's directory; that of a tuning has a suffix."""
    return f"{models.label(arch)}_{bit}bit{suffix}"


@lru_cache
def revision() -> str:
    """Return the git revision of the code, with "+" where code has changes; "unknown" outside a checkout.

    It stays that of the first call while the process runs. Documents and result/, where runs write tables that are in git, do
    not count as code.
    """
    def git(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *command], capture_output=True, text=True, check=False)

    try:
        found = git("describe", "--always", "--exclude=*")
        changed = git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)result", ":(top,exclude)*.md").returncode
    except OSError:
        return "unknown"
    return "unknown" if found.returncode else found.stdout.strip() + "+" * bool(changed)


def network_state(network: Network) -> dict[str, Any]:
    """Return the contents that rebuild a network: architecture, data set, classes, bits, parameters.

    Raises:
        UserError: the network has a fault that makes it useless; the checkpoint before stays.
    """
    try:
        check_values(network)
    except ValueError as error:
        raise UserError(f"not saved: {error}; lower --lr, or --resume from the checkpoint before") from error
    return {"format": FORMAT, "arch": network.arch, "dataset": network.dataset, "num_classes": network.num_classes,
            "bit": network.bit, "weight_bit": network.weight_bit, "mean": network.facts.mean, "std": network.facts.std,
            "state_dict": network.state_dict()}


def recorded(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint was written with, by name, also of earlier versions; empty without any."""
    values = contents.get("args", {})
    if not isinstance(values, dict):
        return {}
    if "unsigned" in values:
        values = values | {"neuron": "unsigned" if values["unsigned"] else "signed"}
    values = values | {now: values[then] for then, now in RENAMED.items() if then in values}
    # In earlier versions settings that a method does not have had values.
    if values.get("method") != "layerwise" or values.get("online"):
        values = values | {"cache": None}
    if values.get("method") == "layerwise":
        values = values | {"teacher": None, "nesterov": None}
    if values.get("method") != "through-time":
        values = values | {"norm": None, "surrogate": None}
    return values


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds, at every moment, either the old or the new one, whole."""
    with replacing(path) as file:
        torch.save(contents, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        UserError: missing, unreadable, truncated, altered since it was written (files of PyTorch >= 1.6 hold checksums), or
            not a file of tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory: name the checkpoint in it, for example {path / BEST}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: train it first, or correct the path")
    try:
        _verify(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser raises anything on a hostile file: IndexError, struct.error, MemoryError, ...
        raise UserError(f"checkpoint {path} {unreadable(error)}") from error
    if not isinstance(contents, dict):
        raise UserError(f"checkpoint {path} holds a {type(contents).__name__}, not a network: choose another file")
    return contents


def _verify(path: Path) -> None:
    """Compare a zip file's members with their checksums, which torch.load does not check; raise ValueError."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed members, which may be of any size")  # torch.save never compresses
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")


def untuned(path: Path) -> Path:
    """Return the checkpoint from which a tuned one was made, through all its tunings; itself if it is not tuned."""
    return tunings(path)[1]


def tunings(path: Path) -> tuple[list[dict[str, Any]], Path]:
    """Return the contents of a tuned checkpoint and of those that it was tuned from, in order, and the path where they started.

    A tuning started from the file of --init, or else from the run beside it; a moved file X_ft.pth.tar from X.pth.tar, if that is
    beside it. A file that names itself, or one made from it, as its start is taken for the start.
    """
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while path.is_file() and path not in seen and "finetune" in (contents := read_checkpoint(path)):
        seen.add(path)
        found.insert(0, contents)
        start, beside = recorded(contents).get("init"), path.with_name(path.name.split("_ft")[0] + SUFFIX)
        if path.name != BEST and (beside.is_file() or not (start and Path(start).is_file())):
            path = beside
        else:
            path = Path(start) if start else path.parent.parent / run_name(contents["arch"], contents["bit"]) / BEST
    return found, path


def load_network(path: str | Path, arch: str | None = None, bit: int | None = None, dataset: str | None = None) -> Network:
    """Load a network, in eval mode on the CPU, from our own checkpoint or a published one.

    Args:
        arch, bit, dataset: as the caller expects them. Our own files know them, and a difference is an error. Published files do
            not: `arch` is needed, `bit` if the network is quantized, `dataset` if the architecture has several.

    Raises:
        UserError: damaged file, another architecture, bit-width or data set, unknown or missing keys, wrong shapes.
    """
    return restore_network(read_checkpoint(path), path, arch, bit, dataset)


def restore_network(contents: dict[str, Any], path: str | Path, arch: str | None = None, bit: int | None = None,
                    dataset: str | None = None, as_it_is: bool = False) -> Network:
    """Rebuild the network in `contents`, read from `path`; see `load_network`.

    Args:
        as_it_is: the network will not be trained, so that a start for training only is an error, see `Facts`.
    """
    try:
        refuse_unnamed(path, contents, arch)
        network = _rebuild(contents, arch, bit, dataset)
        check_values(network)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    except (KeyError, AttributeError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise UserError(f"checkpoint {path} {unreadable(error)}") from error
    if as_it_is and network.trainable_start:
        raise UserError(f"checkpoint {path} lacks thresholds or statistics of its own, as APoT's and TorchVision's files do: "
                        f"main.py --init {path} trains it first")
    return network


def refuse_unnamed(path: str | Path, contents: dict[str, Any], arch: str | None, flag: str = "--arch") -> None:
    """Raise UserError if a checkpoint's network is of a user's file, which only `flag` may name, and `arch` is None."""
    named = str(contents.get("arch")) if "format" in contents else ""
    if arch is None and models.file_of(named) is not None:
        raise UserError(f"checkpoint {path}: is of the network {named}: name it with {flag}; what a checkpoint names is never "
                        "imported")


def _rebuild(contents: dict[str, Any], arch: str | None, bit: int | None, dataset: str | None) -> Network:
    state = state_of(contents)
    for key, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"holds {key} of shape {list(value.shape)} without its values: it is damaged or made to fill memory")
    if "format" not in contents:
        return load_published(state, arch, bit, dataset).eval()
    if contents["format"] != FORMAT:
        raise ValueError(f"format {contents['format']} is not {FORMAT}: it was written by another version of this code")
    for name, expected in HEADER.items():
        if not isinstance(contents[name], expected):
            raise ValueError(f"holds {name} of type {type(contents[name]).__name__}: copy or train it again")
    for name, expected in {"arch": arch, "bit": bit, "dataset": dataset}.items():
        if expected is not None and contents[name] != expected and not (name == "arch" and models.same(arch, contents["arch"])):
            start = "; --fit N quantizes a float network, main.py --init trains it" * (contents[name] == FLOAT_BITS)
            raise ValueError(f"holds {name} {contents[name]}, not {expected}: name a fitting file, or change --{name}{start}")
    if "head.weight" in state and len(state["head.weight"]) != contents["num_classes"]:  # checked before so many are allocated
        raise ValueError(f"says {contents['num_classes']} classes, but its head.weight has {len(state['head.weight'])}")
    if not any(value.dim() and len(value) == contents["num_classes"] for value in state.values()):
        raise ValueError(f"says {contents['num_classes']} classes, but no tensor in it has as many rows")
    network = models.build(arch or contents["arch"], contents["dataset"], contents["num_classes"])
    if contents.get("mean") is not None:
        mean, std = (tuple(map(float, contents[name])) for name in ("mean", "std"))
        network.facts = replace(network.facts, mean=mean, std=std)
    if contents["bit"] != FLOAT_BITS:
        network = quantize_(network, contents["bit"], contents["weight_bit"])
        adopt_steps_(network, state)
    load_strictly_(network, state)
    return network.eval()
