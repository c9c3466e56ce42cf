"""A run: its directory with config.json, log.jsonl, checkpoint.pth.tar and model_best.pth.tar; new, resumed, or refused."""

import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..config import RunSettings
from ..distributed.elastic import launchers, same_launch
from ..distributed.processes import Place, check_everywhere
from ..errors import UserError
from ..files import remove_parts, write_text
from .checkpoint import BEST, LAST, read_checkpoint, recorded, revision, run_name, save_checkpoint
from .lock import check_held, writing

CONFIG, LOG = "config.json", "log.jsonl"
FILES, PAGES = (LAST, BEST, CONFIG, LOG), ("report.html", "report.json")  # of a run; of report.py about it
# Other values of these change nothing when a run goes on, so that they are not mentioned.
SILENT = {"resume", "init", "init_bit", "overwrite", "start_epoch", "pretrained", "local_rank", "directories", "data", "result",
          "device", "evaluate"}
S = TypeVar("S")


def simple(value: Any) -> Any:
    """Return a value as JSON and weights_only loading take it: dataclasses as dictionaries, paths as text."""
    if is_dataclass(value):
        return simple(asdict(value))
    if isinstance(value, dict):
        return {key: simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain(settings: Any) -> dict[str, Any]:
    """Return all settings of a script by name, as plain values."""
    return {name: value for part in simple(settings).values() if part for name, value in part.items()}


def launchers_of(path: Path) -> list[str | None]:
    """Return the `launchers` of the run in a directory; empty if there are none."""
    try:
        return json.loads((path / CONFIG).read_text())["launchers"]
    except (OSError, ValueError, KeyError):
        return []


def path_of(run: RunSettings, suffix: str = "") -> Path:
    """Return a run's directory."""
    return run.result / run_name(run.arch, run.bit, suffix)


def refuse_occupied(path: Path, run: RunSettings) -> None:
    """Raise UserError if a directory holds a network or a run, unless the flags say --overwrite."""
    if run.overwrite:
        return
    if (path / LAST).exists():
        raise UserError(f"{path} holds a run already: --resume goes on with it, --overwrite deletes it, --result DIR puts this one "
                        "elsewhere")
    if (path / BEST).exists():
        raise UserError(f"{path / BEST} is there already: --overwrite replaces it, --result DIR puts this one elsewhere")


class RunDirectory:
    """Where one training or tuning keeps its results; of several processes the first one writes.

    Args:
        run: names the network and the parent directory, and says whether to go on with the run there, or to delete it. If
            torchrun has restarted this process after a failure, a run that this launch began goes on in any case.
        suffix: of the directory's name, {arch}_{bit}bit{suffix}.
        check: called with the contents and the path of the checkpoint with which the run goes on; raises UserError if it is
            damaged.
        teacher: another file that the run reads.

    Attributes:
        file, contents: the checkpoint with which the run goes on, and its contents; None and empty for a new run.
        changed: the settings that are others than before.

    Raises:
        UserError: the directory holds a run and the flags say neither --resume nor --overwrite, there is no run to go on with,
            the run would delete or replace a file that it reads, or the processes do not see the same directory.
    """

    def __init__(self, run: RunSettings, suffix: str, check: Callable[[dict[str, Any], Path], None], teacher: Path | None = None):
        self.path, self.writer = path_of(run, suffix), None
        self.writes = Place.of_environment().first
        last = self.path / LAST
        check_everywhere(last)
        self.restarted = same_launch(launchers_of(self.path) if last.exists() else [])
        if self.restarted:
            print(f"started again: going on with {self.path}", file=sys.stderr)
        self.file = last if self.restarted or run.resume == Path() else run.resume
        self.contents: dict[str, Any] = {}
        self.changed: list[str] = []
        if self.file == last and not last.exists():
            raise UserError(f"--resume: {last} does not exist, there is no run to go on with; leave --resume out")
        if self.file is not None:
            self.contents = read_checkpoint(self.file)
            if self.file.parent.resolve() != self.path.resolve():
                raise UserError(f"--resume {self.file}: this is no checkpoint of the run in {self.path}; a new run starts from it "
                                f"with --init {self.file}")
            check(self.contents, self.file)
        else:
            self._refuse_own("--init", run.init)
            refuse_occupied(self.path, run)
        self._refuse_own("--teacher", teacher)

    def _refuse_own(self, flag: str, file: Path | None) -> None:
        """Raise UserError if a file that the run reads is one that it writes."""
        if file and file.name in FILES and file.parent.resolve() == self.path.resolve():
            raise UserError(f"{flag} {file}: the run would delete this file in its own directory; --result DIR puts the run "
                            "elsewhere")

    @classmethod
    @contextmanager
    def opened(cls, run: RunSettings, suffix: str, check: Callable[[dict[str, Any], Path], None],
               teacher: Path | None = None) -> Iterator["RunDirectory"]:
        """Open a run whose directory no other process writes meanwhile; see `writing`."""
        with writing(path_of(run, suffix)):
            yield cls(run, suffix, check, teacher)

    def settings(self, given: S, read: Callable[[dict[str, Any]], S]) -> S:
        """Return the settings of the run. One that goes on keeps its own, except for flags that are given; prints the differences.

        Args:
            given: the settings of a new run.
            read: returns the settings of the command line, with defaults from a dictionary of values by name.
        """
        if not self.contents:
            return given
        before = recorded(self.contents)
        settings = read(before)
        now = plain(settings)
        self.changed = sorted(name for name in before.keys() & now.keys() - SILENT if now[name] != before[name])
        for name in self.changed if self.writes else ():
            print(f"resumed with --{name.replace('_', '-')} {now[name]}; it was {before[name]}", file=sys.stderr)
        start = settings.run.init or (Path(before["init"]) if before.get("init") else None)
        return replace(settings, run=replace(settings.run, init=start, resume=self.file, overwrite=False))

    def begin(self, settings: Any, history: list[dict[str, Any]]) -> None:
        """Make the directory, write the settings and, if the run goes on, its log.

        Raises:
            UserError: the directory cannot be written, or TensorBoard is not installed.
        """
        began = launchers()
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_parts(self.path, FILES)
            old = [self.path / name for name in (*FILES, *PAGES)] + list(self.path.glob("events.out.tfevents*"))
            for file in () if self.contents else old:
                file.unlink(missing_ok=True)
            versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision")}
            config = {"settings": simple(settings), "revision": revision(), "versions": versions, "launchers": began}
            write_text(self.path / CONFIG, json.dumps(config, indent=2) + "\n")
            if settings.run.tensorboard:
                self.writer = tensorboard_writer(self.path)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}; permit writing, or name another "
                            "--result DIR") from error
        if self.contents:
            self.log(history)  # it may have been killed between its checkpoint and its log

    def log(self, history: list[dict[str, Any]]) -> None:
        """Write the log."""
        if self.writes:
            write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in history))

    def save(self, contents: dict[str, Any], history: list[dict[str, Any]], is_best: bool) -> None:
        """Write an epoch's checkpoint and its log; if it is the best, write that one too."""
        if not self.writes:
            return
        check_held(self.path)
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
