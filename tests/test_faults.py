"""If one of several processes raises, is killed or hangs, all others end in time, its error is shown, and none is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from helpers import picture

from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "tests" / "worker.py"
TIMEOUT = 8  # seconds that a process waits for the others
ALLOWED = 120  # seconds until all have ended: the time-out, the launcher's grace of 30, starting up on a busy machine

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return 8 classes with one small image each."""
    base = tmp_path_factory.mktemp("imagenet")
    for label in range(8):
        folder = base / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        picture(40 + label, 48, seed=label).save(folder / f"{label}.JPEG")
    shutil.copytree(base / "train", base / "val")
    return base


class Launched:
    """Processes under a launcher, known by a mark in their environment."""

    def __init__(self, processes: int, *command: object):
        self.mark = f"FAST_SNN_TEST={uuid.uuid4()}"
        name, value = self.mark.split("=")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        self.process = subprocess.Popen([*launcher, *map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1", name: value},
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def alive(self) -> list[int]:
        """Return the processes that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        return found

    def end(self) -> str:
        """Wait for the launcher, then for the rest; return the output."""
        try:
            output, _ = self.process.communicate(timeout=ALLOWED)
            self.wait_for(lambda: not self.alive())
        finally:
            left = self.alive()
            for process in left:
                os.kill(process, signal.SIGKILL)
        assert left == [], output
        return output

    def wait_for(self, condition) -> None:
        """Wait until a condition holds, at most the time that is allowed."""
        began = time.monotonic()
        while not condition() and time.monotonic() - began < ALLOWED:
            time.sleep(0.1)


@pytest.mark.parametrize(("task", "processes", "shown"), [
    ("die", 2, "Signal 9 (SIGKILL) received by PID"),
    pytest.param("fail", 3, "RuntimeError: the second process fails on purpose", marks=pytest.mark.slow)])
def test_a_process_that_ends_ends_the_others(root, tmp_path, task, processes, shown):
    launched = Launched(processes, WORKER, task, root, tmp_path, TIMEOUT)
    output = launched.end()
    assert launched.process.returncode != 0
    assert shown in output.split("Root Cause")[1]
    assert not list(tmp_path.glob("*.pt"))


def test_a_mistake_that_one_process_finds_is_the_root_cause(root, tmp_path):
    """Torchrun's summary shows it as one line; the others say in one line that they have lost it."""
    images = tmp_path / "images"
    shutil.copytree(root, images)
    (images / "train" / "n00000005" / "5.JPEG").write_bytes(b"no picture")  # of rank 1, in its first batch
    launched = Launched(2, WORKER, "read", images, tmp_path, TIMEOUT)
    output = launched.end()
    assert launched.process.returncode != 0
    summary = output.split("Root Cause")[1]
    assert re.search(r"traceback : error: \S*5.JPEG cannot be decoded", summary)
    assert "rank      : 1 " in summary
    assert output.count("Traceback") == 1  # torchrun's own
    assert not list(tmp_path.glob("*.pt"))


def with_a_pipe(root: Path, place: Path) -> Path:
    """Return a copy in which the second process's second image is a pipe that nobody writes to."""
    shutil.copytree(root, place)
    (place / "train" / "n00000003" / "3.JPEG").unlink()
    os.mkfifo(place / "train" / "n00000003" / "3.JPEG")
    return place


def test_a_reader_that_hangs_ends_all_after_the_timeout(root, tmp_path):
    launched = Launched(2, WORKER, "read", with_a_pipe(root, tmp_path / "images"), tmp_path, TIMEOUT)
    output = launched.end()
    assert launched.process.returncode != 0
    assert "error: process 0 lost the others" in output.split("Root Cause")[1]  # nobody failed before it
    assert f"silent for more than the {TIMEOUT} seconds of --timeout" in output


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_a_training_run_whose_reader_hangs_ends(root, tmp_path, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    images = with_a_pipe(root, tmp_path / "images")
    launched = Launched(2, ROOT / "dali_main.py", "--scratch", "-a", "alexnet", "--bit", "4", "-b", "2", "-j", "1", "--epochs", "1",
                        "--loader", loader, "--timeout", TIMEOUT, "--result", tmp_path / "result", images)
    output = launched.end()
    assert launched.process.returncode != 0
    assert "lost the others" in output


def test_no_process_outlives_a_launcher_that_is_killed(root, tmp_path):
    """They would go on in the directory of the run that is started in their place."""
    launched = Launched(2, WORKER, "wait", root, tmp_path)
    launched.wait_for(lambda: len(list(tmp_path.glob("*.here"))) == 2 or launched.process.poll() is not None)
    assert len(launched.alive()) >= 5  # the launcher, two processes, their readers
    launched.process.kill()
    launched.end()


def log_lines(result: Path) -> list[dict]:
    """Return the log of the run without its seconds; empty where there is none yet."""
    file = result / "alexnet_4bit" / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.slow
def test_a_training_run_of_two_processes_survives_kills(root, tmp_path):
    """The launcher is killed again and again, in the first epoch and later; --resume ends where an unbroken run does."""
    flags = ["-a", "alexnet", "--bit", "4", "-b", "2", "-j", "1", "--epochs", "3", "--lr", "0.001", "--loader", "torchvision"]
    line = [2, ROOT / "dali_main.py", *flags]
    whole = Launched(*line, "--scratch", "--result", tmp_path / "whole", root)
    output = whole.end()
    assert whole.process.returncode == 0, output
    start, file = "--scratch", tmp_path / "broken" / "alexnet_4bit" / "log.jsonl"
    for epochs in (0, 0, 1, 2):
        broken = Launched(*line, start, "--result", tmp_path / "broken", root)
        broken.wait_for(lambda n=epochs, run=broken: (file.exists() and len(log_lines(tmp_path / "broken")) >= n)
                        or run.process.poll() is not None)
        time.sleep(0.7)  # into the next epoch, or into its checkpoint
        assert broken.process.poll() is None, broken.end()
        broken.process.kill()
        broken.end()
        start = "--resume"
    last = Launched(*line, start, "--result", tmp_path / "broken", root)
    output = last.end()
    assert last.process.returncode == 0, output
    assert len(log_lines(tmp_path / "whole")) == 3
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "broken")
    for name in (LAST, BEST):
        a, b = (read_checkpoint(tmp_path / run / "alexnet_4bit" / name) for run in ("whole", "broken"))
        assert all(torch.equal(tensor, b["state_dict"][key]) for key, tensor in a["state_dict"].items())
        momenta = [[entry["momentum_buffer"] for entry in c["optimizer"]["state"].values()] for c in (a, b)]
        assert all(map(torch.equal, *momenta))
