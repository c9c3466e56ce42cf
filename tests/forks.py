"""Runs scripts in forks of this process, which has imported everything and run nothing: no run pays for the import of torch.

A line of the input is a job, {"script", "argv", "log", "moment"}. For each two numbers are printed: that of its process, and at its
end the exit code, or minus the signal that ended it. What the script prints is added to the file `log`.

A moment is null, or [what, which]. The script kills itself at the n-th, counted from 1: "step" before an optimizer's step, "write"
halfway through a checkpoint, "rename" before and "renamed" after a file takes its place; "alarm" after n seconds. With ["hold",
PLACE] its first step touches PLACE/here and waits for PLACE/go.
"""

import faulthandler
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimizer imports: no fork is to pay for it

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils import script

SCRIPTS = {name: importlib.import_module(name) for name in ("main", "snn", "snn_ft", "reproduce")}
LIMIT = 1200  # seconds after which a job that hangs says where and ends, with exit code 1


class Moment:
    """Counts calls and kills this process at the n-th."""

    def __init__(self, count: int):
        self.left = count

    def passed(self) -> None:
        """Count; the last call does not return."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable) -> Callable:
        """Return the function with the moment before it."""
        return lambda *args, **kwargs: (self.passed(), function(*args, **kwargs))[1]

    def after(self, function: Callable) -> Callable:
        """Return the function with the moment after it."""
        return lambda *args, **kwargs: (function(*args, **kwargs), self.passed())[0]

    def within(self, save: Callable) -> Callable:
        """Return torch.save with the moment after half of the bytes."""

        def half(contents, file):
            whole = io.BytesIO()
            save(contents, whole)
            data = whole.getvalue()
            file.write(data[:len(data) // 2])
            file.flush()
            self.passed()
            file.write(data[len(data) // 2:])

        return half


def hold(place: Path) -> None:
    """Let the first step of this process touch `place`/here and wait for `place`/go."""
    step = torch.optim.SGD.step

    def first(*args, **kwargs):
        torch.optim.SGD.step = step
        (place / "here").touch()
        while not (place / "go").exists():
            time.sleep(0.05)
        return step(*args, **kwargs)

    torch.optim.SGD.step = first


def arm(what: str, which: float | str) -> None:
    """Install a moment in this process for good: it ends with its job."""
    if what == "alarm":
        signal.setitimer(signal.ITIMER_REAL, which)  # without a handler the signal ends the process
    elif what == "hold":
        hold(Path(which))
    elif what == "step":
        torch.optim.SGD.step = Moment(which).before(torch.optim.SGD.step)
    elif what == "write":
        torch.save = Moment(which).within(torch.save)
    else:
        moment = Moment(which)
        Path.replace = {"rename": moment.before, "renamed": moment.after}[what](Path.replace)


def work(job: dict) -> None:
    """Do a job in this fork; does not return."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [job["script"], *job["argv"]]
    code = 1
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        if job["moment"]:
            arm(*job["moment"])
        script.run(SCRIPTS[job["script"]].main)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork() or work(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
