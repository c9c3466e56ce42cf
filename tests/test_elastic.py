"""What torchrun learns of a worker's end; which runs go on after a restart."""

import argparse
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import dali_main
from utils import script
from utils.checkpoint import LAST
from utils.elastic import launcher
from utils.errors import LostError, UserError
from utils.rundir import CONFIG, RunDirectory


def launched(monkeypatch, base: Path, name: str, attempt: int = 0) -> Path:
    """Make this process look like one that torchrun has started; return where its error belongs."""
    file = base / name / f"attempt_{attempt}" / "0" / "error.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
    return file


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("error", "shown", "code"), [
    (UserError("--lr 9: lower it"), "traceback : error: --lr 9: lower it\n", 2),
    (PermissionError(13, "Permission denied", "/x"), "traceback : error: Permission denied: /x; choose another path", 2),
    (LostError("process 0 lost the others"), "traceback : error: process 0 lost the others\n", 2),
    (ZeroDivisionError("of a bug"), "ZeroDivisionError: of a bug", None)])
@pytest.mark.filterwarnings("ignore:Unable to enable fault handler")
def test_torchrun_shows_the_error_that_ended_a_worker(tmp_path, monkeypatch, capsys, error, shown, code):
    file, waits = launched(monkeypatch, tmp_path, "none_a"), []
    monkeypatch.setattr("utils.script.time.sleep", waits.append)
    with pytest.raises(SystemExit if code else type(error)) as stopped:
        script.run(lambda: raising(error))
    summary = ChildFailedError("x.py", {0: ProcessFailure(0, 1, 2, str(file))}).format_msg()
    assert shown in summary
    assert summary.count("Traceback") == (not code)
    if code:
        assert stopped.value.code == code
        assert capsys.readouterr().err.count("\n") == 1
    assert len(waits) == isinstance(error, LostError)  # so that torchrun sees the one that failed first


def test_a_wrong_flag_is_what_torchrun_shows(tmp_path, monkeypatch, capsys):
    file = launched(monkeypatch, tmp_path, "none_a")
    monkeypatch.setattr(sys, "argv", ["dali_main.py", "-b", "0", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.run(dali_main.main)
    assert "batch size at least 1" in ProcessFailure(0, 1, 2, str(file)).message["extraInfo"]["py_callstack"]


@pytest.mark.parametrize(("name", "goes_on"), [("none_a", True), ("none_b", False), (None, False)])
def test_a_restart_goes_on_with_a_run_of_its_own_launch_only(tmp_path, monkeypatch, capsys, name, goes_on):
    """The run id is "none" in each: an older run in the directory is left to the flags, which refuse it or delete it."""
    path = tmp_path / "run"
    launched(monkeypatch, tmp_path, "none_a")
    RunDirectory(path, argparse.Namespace())
    args = argparse.Namespace(resume=None, overwrite=True, init=Path("start"))
    if name is None:
        monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    else:
        launched(monkeypatch, tmp_path, name, attempt=1)
    script.go_on_after_restart(args, path)
    assert args.resume is None  # killed before its first checkpoint
    (path / LAST).touch()
    script.go_on_after_restart(args, path)
    assert vars(args) == ({"resume": Path(), "overwrite": False, "init": None} if goes_on else
                          {"resume": None, "overwrite": True, "init": Path("start")})
    (path / CONFIG).write_text("{}")  # of an earlier version
    args.resume = None
    script.go_on_after_restart(args, path)
    assert args.resume is None


def test_the_launcher_is_the_same_in_all_its_workers(tmp_path, monkeypatch):
    launched(monkeypatch, tmp_path, "none_a")
    first = launcher()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none_a" / "attempt_3" / "1" / "error.json"))
    assert launcher() == first == str(tmp_path / "none_a")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")  # --log-dir /dev/null
    assert launcher() is None
