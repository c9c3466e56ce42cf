"""Stages of a study: calls of the scripts, each made once and kept as a record, so that an interrupted study goes on."""

import importlib
import json
import time
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from .checkpoint import LAST, revision
from .errors import UserError
from .rundir import write_text

RECORD = "record.json"


@dataclass(frozen=True)
class Stage:
    """One call of a script.

    Attributes:
        name: of its directory.
        script: "main", "snn" or "snn_ft".
        flags: all arguments but --result.
        passes: its cost, in float forward passes over one image.
    """

    name: str
    script: str
    flags: tuple[str, ...]
    passes: float


def record_of(stage: Stage, study: Path) -> dict[str, Any] | None:
    """Return what a finished stage left; None if it has not finished.

    Raises:
        UserError: the record is of other flags, so that its figures are not those of this stage.
    """
    path = study / stage.name / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        flags = record["flags"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the stage runs again") from error
    if flags != list(stage.flags):
        raise UserError(f"{path} is of {' '.join(flags)}, not {' '.join(stage.flags)}: delete it, or name another --study")
    return record


def run(stage: Stage, study: Path) -> dict[str, Any]:
    """Return a stage's record; run the stage, from where an interruption left it, if there is none yet."""
    record = record_of(stage, study)
    if record is not None:
        return record
    directory = study / stage.name
    began = time.monotonic()
    call = importlib.import_module(stage.script).main
    result = call([*stage.flags, "--result", str(directory), *continuation(stage, directory)])
    seconds = round(time.monotonic() - began, 1)
    record = {"flags": list(stage.flags), "revision": revision(), "seconds": seconds, "result": simple(result)}
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def continuation(stage: Stage, directory: Path) -> list[str]:
    """Return --resume where the stage is a training that an interruption has left behind."""
    return ["--resume"] if stage.script != "snn" and any(directory.glob(f"*/{LAST}")) else []


def simple(value: Any) -> Any:
    """Return a script's result as JSON takes it."""
    if is_dataclass(value):
        return simple(asdict(value))
    if isinstance(value, dict):
        return {key: simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    return str(value) if isinstance(value, Path) else value
