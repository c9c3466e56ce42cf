"""Stages of a study: calls of the scripts, each made once and kept as a record, so that an interrupted study goes on."""

import hashlib
import importlib
import json
import time
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from .checkpoint import LAST, revision
from .errors import UserError
from .rundir import LOG, write_text

RECORD = "record.json"
TRAININGS = ("main", "dali_main")


@dataclass(frozen=True)
class Stage:
    """One call of a script.

    Attributes:
        name: of its directory, below the study's.
        script: "main", "dali_main", "snn" or "snn_ft".
        flags: all arguments but --result.
        arch, dataset: of its network.
        trained: its cost in training steps of the float network, counted in images.
        passes: its cost in forward passes of the float network, counted in images.
    """

    name: str
    script: str
    flags: tuple[str, ...]
    arch: str = "resnet20"
    dataset: str = "cifar10"
    trained: float = 0
    passes: float = 0

    def flag(self, name: str) -> str | None:
        """Return the value of a flag; None without it."""
        return self.flags[self.flags.index(name) + 1] if name in self.flags else None


def record_of(stage: Stage, study: Path) -> dict[str, Any] | None:
    """Return what a finished stage left; None if it has not finished.

    Raises:
        UserError: the record is of other flags or another --init file, so that its figures are not those of this stage.
    """
    path = study / stage.name / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        flags, start = record["flags"], record["start"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the stage runs again") from error
    if flags != list(stage.flags):
        raise UserError(f"{path} is of {' '.join(flags)}, not {' '.join(stage.flags)}: delete it, or name another --study")
    if (now := digest(stage)) not in (None, start):
        raise UserError(f"{path} started from another {stage.flag('--init')} ({start}, now {now}): delete {path.parent}, or name "
                        "another --study")
    return record


def digest(stage: Stage) -> str | None:
    """Return the start of the SHA-256 of the file that a stage starts from; None without one, or where it is gone."""
    init = stage.flag("--init")
    if init is None or not Path(init).is_file():
        return None
    return hashlib.sha256(Path(init).read_bytes()).hexdigest()[:16]


def run(stage: Stage, study: Path) -> dict[str, Any]:
    """Return a stage's record; run the stage, from where an interruption left it, if there is none yet."""
    record = record_of(stage, study)
    if record is not None:
        return record
    directory = study / stage.name
    began, start = time.monotonic(), digest(stage)
    call = importlib.import_module(stage.script).main
    result = call([*arguments(stage, directory), "--result", str(directory)])
    seconds = round(time.monotonic() - began, 1)
    record = {"flags": list(stage.flags), "start": start, "revision": revision(), "seconds": seconds, "result": simple(result)}
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def arguments(stage: Stage, directory: Path) -> list[str]:
    """Return the flags that start a stage, or that go on with a training which an interruption has left behind."""
    if stage.script == "snn" or not any(directory.glob(f"*/{LAST}")):
        return list(stage.flags)
    flags = list(stage.flags)
    if stage.script in TRAININGS and "--init" in flags:  # the checkpoint takes its place
        at = flags.index("--init")
        del flags[at:at + 2]
    return ["--resume", *flags] if stage.script == "snn_ft" else [*flags, "--resume"]


def left(stage: Stage, study: Path) -> float:
    """Return the part that is still to do of a stage without a record, 0 to 1: a training counts its epochs, others run as one."""
    epochs = stage.flag("--epochs")
    logs = list((study / stage.name).glob(f"*/{LOG}"))
    return 1 - len(logs[0].read_text().splitlines()) / int(epochs) if epochs and logs else 1.0


def simple(value: Any) -> Any:
    """Return a script's result as JSON takes it."""
    if is_dataclass(value):
        return simple(asdict(value))
    if isinstance(value, dict):
        return {key: simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    return str(value) if isinstance(value, Path) else value
