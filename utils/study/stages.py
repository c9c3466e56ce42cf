"""Stages of a study: calls of the scripts, each made once and kept as a record, so that an interrupted study goes on."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..checkpoints.checkpoint import LAST, revision
from ..checkpoints.light import origin
from ..checkpoints.rundir import LOG, simple
from ..errors import UserError
from ..files import write_text

RECORD, LOCK = "record.json", "stage.lock"
TRAININGS = ("main", "dali_main")


@dataclass(frozen=True)
class Stage:
    """One call of a script.

    Attributes:
        name: of its directory, below the study's.
        script: "main", "dali_main", "snn" or "snn_ft".
        flags: the arguments that decide the result: all but the paths below and --result.
        init: file of --init; None without one.
        teacher: file of a training's --teacher; None without one.
        place: the arguments that name the data set.
        arch, dataset: of its network.
        trained: its cost in training steps of the float network, counted in images.
        passes: its cost in forward passes of the float network, counted in images.
    """

    name: str
    script: str
    flags: tuple[str, ...]
    init: Path | None = None
    place: tuple[str, ...] = ()
    arch: str = "resnet20"
    dataset: str = "cifar10"
    trained: float = 0
    passes: float = 0
    teacher: Path | None = None

    def flag(self, name: str) -> str | None:
        """Return the value of a flag; None without it."""
        return self.flags[self.flags.index(name) + 1] if name in self.flags else None


def record_of(stage: Stage, study: Path) -> dict[str, Any] | None:
    """Return the record of a finished stage; None if it has not finished.

    Raises:
        UserError: the stage was begun with other flags or another --init file, so that its results are of another stage.
    """
    record = _begun(stage, study)
    return record if record and record["result"] is not None else None


def _begun(stage: Stage, study: Path) -> dict[str, Any] | None:
    path = study / stage.name / RECORD
    if not path.exists():
        return None
    remedy = f"delete {path.parent}, and the stage runs again; or name another --study"
    try:
        record = json.loads(path.read_text())
        flags, start, _ = record["flags"], record["start"], record["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if record["result"] is None and not _saved(path.parent):
        return None  # it ended before its first checkpoint, perhaps because its start was missing
    teacher = record.get("teacher")
    if stage.script in TRAININGS and "--teacher" in flags:  # earlier versions counted its path among the flags
        flags, teacher = flags[:(at := flags.index("--teacher"))] + flags[at + 2:], digest(stage.teacher) or "unknown"
    if (was := _words(flags, teacher)) != (now := _words(stage.flags, stage.teacher)):
        raise UserError(f"{path} is of {' '.join(was)}, not {' '.join(now)}: {remedy}")
    for file, then in ((stage.init, start), (stage.teacher, teacher)):
        if (now := digest(file)) not in (None, then):
            raise UserError(f"{path} started from another {file} ({then}, now {now}): {remedy}")
    return record


def _words(flags: Sequence[str], teacher: Path | str | None) -> list[str]:
    return [*flags, *["--teacher"] * (teacher is not None)]


def _saved(directory: Path) -> bool:
    """Return whether a training or tuning in this directory can go on."""
    return any(directory.glob(f"*/{LAST}"))


def digest(file: Path | None) -> str | None:
    """Return the first digits of the SHA-256 of a file that a stage reads, as a run wrote it; None without a file."""
    return None if file is None or not file.is_file() else origin(file)[:16]


def run(stage: Stage, study: Path) -> dict[str, Any]:
    """Return a stage's record; run the stage, from where an interruption left it, if it has not finished.

    From the start there is a record without a result, so that a stage goes on with its own flags. It names all revisions that
    took part.

    Raises:
        UserError: as `record_of`; there is a run without a record; another process runs this stage; the script raises one.
    """
    directory = study / stage.name
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / LOCK, timeout=0):
            return _run(stage, study)
    except Timeout as error:
        raise UserError(f"stage {stage.name}: another process runs it; wait, or name another --study") from error
    except UserError as error:
        error.args = (f"stage {stage.name}: {error}",)
        raise


def _run(stage: Stage, study: Path) -> dict[str, Any]:
    record = _begun(stage, study)
    if record and record["result"] is not None:
        return record
    directory = study / stage.name
    if record is None and _saved(directory):
        raise UserError(f"{directory} holds a run without {RECORD}, of flags unknown: delete it, or name another --study")
    record = record or {"flags": list(stage.flags), "start": digest(stage.init), "teacher": digest(stage.teacher),
                        "revision": revision(), "result": None}
    if revision() not in record["revision"].split(", "):
        record["revision"] += f", {revision()}"
    _write(directory, record)
    call = importlib.import_module(stage.script).main
    result = call([*arguments(stage, directory), "--result", str(directory)])
    record["result"] = simple(result)
    if stage.script in TRAININGS:  # also those before an interruption; the result of a tuning holds its own
        record["seconds"] = round(sum(line["seconds"] for line in epochs_of(stage, study)), 1)
    _write(directory, record)
    return record


def _write(directory: Path, record: dict[str, Any]) -> None:
    write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")


def arguments(stage: Stage, directory: Path) -> list[str]:
    """Return the arguments that start a stage, or go on with an interrupted one."""
    init = ["--init", str(stage.init)] if reads_start(stage, directory) else []
    teacher = [] if stage.teacher is None else ["--teacher", str(stage.teacher)]
    return [*stage.flags, *teacher, *init, *stage.place, *["--resume"] * _saved(directory)]


def reads_start(stage: Stage, directory: Path) -> bool:
    """Return whether a stage, run in its directory as it is, reads its --init file."""
    # A training's checkpoint takes the place of its start; a tuning needs its ANN again.
    return stage.init is not None and not (_saved(directory) and stage.script in TRAININGS)


def lost(chain: tuple[Stage, ...], study: Path) -> list[Stage]:
    """Return the finished stages of a chain whose network is gone, but needed as start or teacher by one that still has to run."""
    found: list[Stage] = []
    for place, after in reversed(list(enumerate(chain))):
        if after in found or record_of(after, study) is None:
            read = [after.init] * reads_start(after, study / after.name) + [after.teacher] * (after.teacher is not None)
            gone = [file for file in read if not file.is_file()]
            found += [before for before in chain[:place] if before not in found and record_of(before, study)
                      and any(study / before.name in file.parents for file in gone)]
    return found


def epochs_of(stage: Stage, study: Path) -> list[dict[str, Any]]:
    """Return the log of a training's epochs so far; empty for another stage."""
    logs = list((study / stage.name).glob(f"*/{LOG}")) if stage.script in TRAININGS else []
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def left(stage: Stage, study: Path) -> float:
    """Return the remaining part, 0 to 1, of a stage without a result: a training counts its epochs, others count as one."""
    done = len(epochs_of(stage, study))
    return 1 - done / int(stage.flag("--epochs")) if done else 1.0
