"""One run, one directory: a second writer is refused, a dead one is no obstacle, readers read; every end is a whole run."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Forks

import main
import snn
import snn_ft
from utils.checkpoints import lock
from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint
from utils.checkpoints.lock import LOCK, check_held, holder, writing
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
NET = f"{ROOT / 'tests' / 'tiny_net.py'}:network"
COMMON = ["-a", NET, "--bit", "2", "-b", "16"]
RUNS = {  # name -> script, its flags, those of another run in the same directory, the directory
    "train": (main, [*COMMON, "--epochs", "2", "--lr", "0.02"], ["--lr", "0.01", "--epochs", "1"], "tiny_net-network_2bit"),
    "tune": (snn_ft, [*COMMON, "--calib", "16", "--check-images", "16", "--method", "global", "-n", "2", "--lr", "0.02"],
             ["--lr", "0.01", "-n", "1"], "tiny_net-network_2bit_ft_global"),
}
SECONDS = [[], ["--resume"], ["--overwrite"]]
HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1]); lock.acquire()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def network(tiny) -> Path:
    """Return a 2-bit network, from which tunings start, in a directory where nobody writes."""
    main.main([*COMMON, "--epochs", "1", "--lr", "0.02", "--data", str(tiny), "--result", str(tiny / "start")])
    return tiny / "start" / "tiny_net-network_2bit" / BEST


class Held:
    """A run of another process, which has saved its start and stands before its first step.

    Attributes:
        process: the number of its process.
        others: flags of another run in the same directory.
    """

    def __init__(self, name: str, network: Path, place: Path, forks: Forks):
        self.script, flags, self.others, directory = RUNS[name]
        init = ["--init", str(network)] if self.script is snn_ft else []
        self.flags = [*flags, *init, "--data", str(network.parents[2]), "--result", str(place)]
        self.place, self.path, self.forks, self.status = place, place / directory, forks, None
        self.process = forks.start(self.script.__name__, self.flags, place / "log", ("hold", str(place)))
        while not (place / "here").exists():
            time.sleep(0.05)
            assert Path(f"/proc/{self.process}").exists(), (place / "log").read_text()

    def again(self, flags: list[str]) -> None:
        """Start a run with other settings in the same directory, in this process."""
        self.script.main([*self.flags, *self.others, *flags])

    def contents(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.path.iterdir()}

    def end(self) -> int:
        """Let it go on; return its exit status."""
        (self.place / "go").touch()
        if self.status is None:
            self.status = self.forks.end()
        return self.status


@pytest.fixture
def held(forks, network, tmp_path):
    """Return a function: name of a run -> `Held`, which ends with the test."""
    begun = []

    def start(name: str) -> Held:
        begun.append(Held(name, network, tmp_path, forks))
        return begun[-1]

    yield start
    for one in begun:
        one.end()


def assert_whole(path: Path, lr: float) -> None:
    """Assert that settings, checkpoints and log in a directory are of one finished run, and nothing else is there."""
    assert sorted(file.name for file in path.iterdir()) == sorted([LAST, BEST, "config.json", "log.jsonl"])
    last, config = read_checkpoint(path / LAST), json.loads((path / "config.json").read_text())
    assert last["args"]["lr"] == lr
    assert f'"lr": {lr}' in json.dumps(config)
    log = (path / "log.jsonl").read_text().splitlines()
    assert log == [json.dumps(line) for line in last["history"]]
    best = [json.dumps(line) for line in read_checkpoint(path / BEST)["history"]]
    assert best == log[:len(best)]


@pytest.mark.parametrize("name", RUNS)
def test_a_second_writer_is_refused_and_changes_nothing(name, held, network, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)
    first = held(name)
    before = first.contents()
    who = f"is written by process {first.process} on {socket.gethostname()} since 20"
    for flags in SECONDS:
        with pytest.raises(UserError, match=who) as refused:
            first.again(flags)
        assert "\n" not in str(refused.value)
        assert "--result DIR" in str(refused.value)
    assert first.contents() == before
    assert first.end() == 0, (first.place / "log").read_text()
    assert_whole(first.path, 0.02)


def test_others_read_while_a_run_writes(held, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)
    first = held("train")
    before = first.contents()
    read = [*COMMON, "-e", "--init", str(first.path / LAST), "--data", first.flags[first.flags.index("--data") + 1]]
    assert main.main(read)["scores"].count == 16
    assert snn.main(read)["snn"].count == 16
    assert first.contents() == before


@pytest.mark.parametrize(("name", "flags"), [("train", "--resume"), ("train", "--overwrite"), ("tune", "--resume")])
def test_a_killed_run_is_no_obstacle(name, flags, held):
    first = held(name)
    os.kill(first.process, signal.SIGKILL)  # at once, before the system has cleared it away
    first.again([flags])
    assert first.end() == -signal.SIGKILL
    assert_whole(first.path, 0.01)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_that_outlives_the_run_does_not_hold_it(tmp_path, monkeypatch):
    """Processes that load images are forks of the run and have its open files."""
    monkeypatch.setattr(lock, "WAIT", 0.1)
    with writing(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    with writing(tmp_path):
        assert holder(tmp_path)["process"] == os.getpid()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_restart_waits_for_what_a_dead_node_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / LOCK), "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="is written by another process"), writing(tmp_path):
        pytest.fail("it is held")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with writing(tmp_path):
        assert process.wait(60) == 0


def test_the_first_of_several_processes_holds_it(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with writing(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with writing(tmp_path):
            assert holder(tmp_path)["process"] == os.getpid()
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_directory_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "result" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "result" / "run"):
        (tmp_path / "result" / "run" / "file").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["result", "run", "file"]


def test_a_run_whose_directory_was_replaced_saves_nothing_there(tmp_path):
    path = tmp_path / "run"
    with writing(path):
        check_held(path)
        shutil.rmtree(path)
        check_held(path)  # gone: the write that follows says so
        path.mkdir()
        with pytest.raises(UserError, match="written by another process: nothing was saved"):
            check_held(path)
        other = FileLock(path / LOCK, timeout=0)
        with other:
            (path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "2026"}))
            with pytest.raises(UserError, match="written by process 7 on elsewhere since 2026: nothing was saved"):
                check_held(path)
    assert holder(path)["host"] == "elsewhere"


def test_without_locks_a_line_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    with writing(tmp_path / "run"):
        check_held(tmp_path / "run")
    assert "without locks: start no second run there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_damaged_note_is_another_process(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    assert lock.described(holder(tmp_path)) == "another process"
