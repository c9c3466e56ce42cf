"""Checkpoints that rebuild their network: written atomically, read with weights_only."""

import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import torch

import models
from models import Network
from quant import FLOAT_BITS, quantize_

from .errors import UserError
from .importer import load_published

FORMAT = 1
LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"


def revision() -> str:
    """Return the git revision of the code, with "+" where the tree has changes; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def network_state(network: Network) -> dict[str, Any]:
    """Return what rebuilds a network: architecture, data set, classes, bits, parameters."""
    return {"format": FORMAT, "arch": network.arch, "dataset": network.dataset, "num_classes": network.num_classes,
            "bit": network.bit, "weight_bit": network.weight_bit, "state_dict": network.state_dict()}


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds, at every moment, either the old or the new one, whole."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or permit writing, then --resume") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        UserError: missing, unreadable, truncated, or not a file of tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory: name the checkpoint in it, for example {path / BEST}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: train it first, or correct the path")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError,
            zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"checkpoint {path} is damaged or of no known kind ({reason}): copy or train it again") from error
    if not isinstance(contents, dict):
        raise UserError(f"checkpoint {path} holds a {type(contents).__name__}, not a network: choose another file")
    return contents


def load_network(path: str | Path, arch: str | None = None, bit: int | None = None, dataset: str | None = None) -> Network:
    """Load a network, in eval mode on the CPU, from our own checkpoint or a published one.

    Args:
        arch, bit, dataset: what the caller expects. Our own files know it, and a difference is an error. Published files
            do not: `arch` is needed, `bit` where the network is quantized, `dataset` where an architecture has several.

    Raises:
        UserError: damaged file, another architecture, bit-width or data set, unknown or missing keys, wrong shapes.
    """
    return restore_network(read_checkpoint(path), path, arch, bit, dataset)


def restore_network(contents: dict[str, Any], path: str | Path, arch: str | None = None, bit: int | None = None,
                    dataset: str | None = None) -> Network:
    """Rebuild the network in `contents`, read from `path`; see `load_network`."""
    try:
        return _rebuild(contents, arch, bit, dataset)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {path} is damaged or of no known kind ({error}): copy or train it again") from error


def _rebuild(contents: dict[str, Any], arch: str | None, bit: int | None, dataset: str | None) -> Network:
    if "format" not in contents:
        state = contents.get("state_dict", contents)
        return load_published(state, arch, bit, dataset).eval()
    if contents["format"] != FORMAT:
        raise ValueError(f"format {contents['format']} is not {FORMAT}: it was written by another version of this code")
    for name, expected in {"arch": arch, "bit": bit, "dataset": dataset}.items():
        if expected is not None and contents[name] != expected:
            raise ValueError(f"holds {name} {contents[name]}, not {expected}: name a fitting file, or change --{name}")
    network = models.build(contents["arch"], contents["dataset"], contents["num_classes"])
    if contents["bit"] != FLOAT_BITS:
        quantize_(network, contents["bit"], contents["weight_bit"])
    try:
        network.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    return network.eval()
