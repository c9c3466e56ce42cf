"""What torchrun learns of a worker's end, which runs go on after a restart, downloads once a node; tested in one process."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import dali_main
import main
from utils import script
from utils.checkpoints.checkpoint import LAST
from utils.checkpoints.rundir import CONFIG, RunDirectory
from utils.distributed import processes
from utils.distributed.elastic import launcher
from utils.distributed.processes import Place, once_per_node
from utils.errors import LostError, UserError


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
    monkeypatch.setattr("utils.script.time.sleep", lambda seconds: waits.append((seconds, file.exists(), capsys.readouterr().err)))
    with pytest.raises(SystemExit if code else type(error)) as stopped:
        script.run(lambda: raising(error))
    summary = ChildFailedError("x.py", {0: ProcessFailure(0, 1, 2, str(file))}).format_msg()
    assert shown in summary
    assert summary.count("Traceback") == (not code)
    if code:
        assert stopped.value.code == code
        assert ("".join(said for *_, said in waits) + capsys.readouterr().err).count("\n") == 1
    # The line comes at once. The file for torchrun comes later, so that torchrun has seen the worker that failed first.
    assert waits == ([(30, False, "error: process 0 lost the others\n")] if isinstance(error, LostError) else [])


def test_a_wrong_flag_is_what_torchrun_shows(tmp_path, monkeypatch, capsys):
    file = launched(monkeypatch, tmp_path, "none_a")
    monkeypatch.setattr(sys, "argv", ["dali_main.py", "-b", "0", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.run(dali_main.main)
    assert "batch size at least 1" in ProcessFailure(0, 1, 2, str(file)).message["extraInfo"]["py_callstack"]


@pytest.mark.parametrize(("name", "goes_on"), [("none_a", True), ("none_b", False), (None, False)])
def test_a_restart_goes_on_with_a_run_of_its_own_launch_only(tmp_path, monkeypatch, capsys, name, goes_on):
    """The run id is "none" in each: an older run in the directory is left to the flags, which refuse it or delete it."""
    launched(monkeypatch, tmp_path, "none_a")
    argv = f"-a resnet20 --dataset digits --result {tmp_path} --overwrite --init start --start-epoch 5".split()
    settings, path = main.parse(argv), tmp_path / "resnet20_32bit"

    def opened() -> RunDirectory:
        return RunDirectory(settings.run, "", lambda state, file: None)

    opened().begin(settings, [])
    if name is None:
        monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    else:
        launched(monkeypatch, tmp_path, name, attempt=1)
    assert opened().file is None  # killed before its first checkpoint
    torch.save({"history": [], "args": {"seed": 3}}, path / LAST)
    run = opened()
    assert (run.restarted, run.file) == ((True, path / LAST) if goes_on else (False, None))
    went_on = run.settings(settings, partial(main.parse, argv))
    assert (went_on.run.overwrite, went_on.data.seed) == ((False, 3) if goes_on else (True, 0))
    (path / CONFIG).write_text("{}")  # of an earlier version
    assert not opened().restarted


def test_the_launcher_is_the_same_in_all_its_workers(tmp_path, monkeypatch):
    launched(monkeypatch, tmp_path, "none_a")
    first = launcher()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none_a" / "attempt_3" / "1" / "error.json"))
    assert launcher() == first == str(tmp_path / "none_a")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")  # --log-dir /dev/null
    assert launcher() is None


@pytest.mark.parametrize("damaged", [False, True])
def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch, capsys, damaged):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    if damaged:
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        (tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"half of it")
    for split in ("train", "val"):
        (tmp_path / split / "n0").mkdir(parents=True)
        (tmp_path / split / "n0" / "0.JPEG").touch()
    monkeypatch.setattr(sys, "argv", f"dali_main.py --bit 4 --loader torchvision --result {tmp_path}/result {tmp_path}".split())
    with pytest.raises(SystemExit) as stopped:
        script.run(dali_main.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert all(part in error for part in ("TorchVision's alexnet", "/hub/checkpoints", "--init FILE", "alexnet-owt-7be5be79.pth",
                                          "--scratch"))
    assert ("no network" in error) != damaged
    assert not (tmp_path / "result").exists()


def test_the_first_process_of_a_node_goes_first_and_its_failure_ends_the_others(monkeypatch):
    """With two nodes the order is that of local ranks; see also the test of two nodes."""
    events = []
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda failed: events.append("all"))
    for local_rank, expected in ((0, ["task", "all", "all"]), (1, ["all", "task", "all"])):
        events.clear()
        assert once_per_node(lambda: events.append("task") or 7, Place(2 + local_rank, local_rank, 4)) == 7
        assert events == expected
    monkeypatch.setattr(processes.dist, "all_reduce", lambda failed: failed.fill_(1))
    with pytest.raises(LostError, match="process 3 ends, as another one failed"):
        once_per_node(lambda: pytest.fail("the others had failed"), Place(3, 1, 4))
    with pytest.raises(UserError, match="no network"):
        once_per_node(lambda: raising(UserError("no network")), Place(2, 0, 4))
