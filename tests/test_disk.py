"""A disk that is full, read-only or gone during a run: a clear error, the last good checkpoint intact, and --resume goes on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import same

import main
from utils import script
from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint
from utils.errors import UserError
from utils.files import PART, replacing
from utils.training import train

RUN = ["-a", "resnet20", "--bit", "2", "-b", "16", "--epochs", "3", "--lr", "0.02"]
NAME = "resnet20_2bit"


@pytest.fixture
def disk(tmp_path) -> Path:
    """Return a file system of its own, 20 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def spoiled_in_epoch(number: int, spoil, monkeypatch) -> None:
    """Call `spoil` at the start of an epoch, counted from 0."""
    train_one = train.train_one

    def spoiled(epoch, *args):
        if epoch == number:
            spoil()
        return train_one(epoch, *args)

    monkeypatch.setattr(train, "train_one", spoiled)


def weights(path: Path) -> dict:
    return read_checkpoint(path)["state_dict"]


@pytest.fixture(scope="module")
def whole(tiny) -> Path:
    """Return the directory of an unbroken run."""
    main.main([*RUN, "--data", str(tiny), "--result", str(tiny / "whole")])
    return tiny / "whole" / NAME


FAULTS = {"full": ("size={used}k", "size=20m", "No space left on device"), "read-only": ("ro", "rw", "Read-only file system")}


@pytest.mark.parametrize(("fault", "epoch"), [("full", 2), ("read-only", 0)])
def test_a_run_goes_on_when_the_disk_is_back(disk, tiny, whole, fault, epoch, monkeypatch):
    """Full: 100 KB are left, so that the write stops in the middle of the checkpoint."""
    spoil, mend, reason = FAULTS[fault]
    flags = [*RUN, "--data", str(tiny), "--result", str(disk)]
    path = disk / NAME

    def happen() -> None:
        used = sum(file.stat().st_blocks for file in path.iterdir()) // 2
        remount(disk, spoil.format(used=used + 100))

    with monkeypatch.context() as patch:
        spoiled_in_epoch(epoch, happen, patch)
        with pytest.raises(UserError, match=rf"cannot write .*{reason}; free space.*--resume"):
            main.main(flags)
    assert len(read_checkpoint(path / LAST)["history"]) == epoch
    assert not list(path.glob(f"*{PART}"))
    remount(disk, mend)
    main.main([*flags, "--resume"])
    for name in (LAST, BEST):
        assert same(weights(path / name), weights(whole / name))


def test_a_directory_that_is_gone_is_named(tiny, tmp_path, monkeypatch, capsys):
    spoiled_in_epoch(1, lambda: shutil.rmtree(tmp_path / NAME), monkeypatch)
    monkeypatch.setattr("sys.argv", ["main.py", *RUN, "--data", str(tiny), "--result", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        script.run(main.main)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert error.startswith(f"error: cannot write {tmp_path / NAME}")
    assert "restore the directory" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [OSError(5, "Input/output error"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_failed_write_leaves_the_old_contents(tmp_path, raised):
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"new, but not")
            raise raised

    with pytest.raises(UserError if isinstance(raised, OSError) else type(raised)):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
