"""A run's directory: config.json, log.jsonl, checkpoint.pth.tar, model_best.pth.tar."""

import argparse
import json
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..distributed.elastic import launchers
from ..distributed.processes import Place
from ..errors import UserError
from ..files import remove_parts, write_text
from .checkpoint import BEST, LAST, revision, save_checkpoint

CONFIG, LOG = "config.json", "log.jsonl"
FILES = (LAST, BEST, CONFIG, LOG)


def simple(value: Any) -> Any:
    """Return what JSON and weights_only loading take: dataclasses and dictionaries as dictionaries, paths as text."""
    if is_dataclass(value):
        return simple(asdict(value))
    if isinstance(value, dict):
        return {key: simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as plain values."""
    return simple(vars(args))


def launchers_of(path: Path) -> list[str | None]:
    """Return the `launchers` of the run in a directory; empty where it does not say."""
    try:
        return json.loads((path / CONFIG).read_text())["launchers"]
    except (OSError, ValueError, KeyError):
        return []


def refuse_occupied(path: Path, resume: bool, overwrite: bool) -> None:
    """Raise UserError if the directory holds a run and the user said neither --resume nor --overwrite, or both."""
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it: choose one")
    if (path / LAST).exists() and not resume and not overwrite:
        raise UserError(f"{path} holds a run already: --resume goes on with it, --overwrite deletes it, "
                        "--result DIR puts this one elsewhere")


class RunDirectory:
    """Where one training or fine-tuning run keeps its results; of several processes the first one writes.

    Args:
        path: the directory.
        args: the run's arguments.
        resume: go on with what is there.
        overwrite: delete what is there.

    Raises:
        UserError: the directory holds a run and neither was asked for, it cannot be written, or TensorBoard is not installed.
    """

    def __init__(self, path: Path, args: argparse.Namespace, resume: bool = False, overwrite: bool = False):
        self.path, self.writer = path, None
        self.writes = Place.of_environment().first
        began = launchers()
        if not self.writes:
            return
        refuse_occupied(path, resume, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_parts(path, FILES)
            for file in () if resume else (*(path / name for name in FILES), *path.glob("events.out.tfevents*")):
                file.unlink(missing_ok=True)
            versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision")}
            config = {"arguments": plain(args), "revision": revision(), "versions": versions, "launchers": began}
            write_text(path / CONFIG, json.dumps(config, indent=2) + "\n")
            if vars(args).get("tensorboard"):
                self.writer = tensorboard_writer(path)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}; permit writing, or name another --result DIR") from error

    def log(self, history: list[dict[str, Any]]) -> None:
        """Write the log; also when a run goes on, since it may have been killed between its checkpoint and its log."""
        if self.writes:
            write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in history))

    def save(self, contents: dict[str, Any], history: list[dict[str, Any]], is_best: bool) -> None:
        """Write an epoch's checkpoint, the best one if it is, and the log that belongs to it."""
        if not self.writes:
            return
        contents = contents | {"history": history, "revision": revision()}
        if is_best:
            save_checkpoint(self.path / BEST, contents)
        save_checkpoint(self.path / LAST, contents)
        self.log(history)
        if self.writer is not None and history:
            for name, value in history[-1].items():
                self.writer.add_scalar(name, value, len(history))
            self.writer.flush()


def tensorboard_writer(path: Path) -> Any:
    """Return a writer of TensorBoard's logs into a directory."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard") from error
    return SummaryWriter(str(path))
