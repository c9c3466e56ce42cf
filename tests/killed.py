"""Runs scripts that kill themselves: killed.py JOBS, a JSON list of jobs; prints their exit statuses.

A job is {"script", "argv", "moment", "log", "checkpoint", "resume"}: where the checkpoint exists, `resume` replaces `argv`.

A moment is [what, n], the n-th time, counted from 1: "step" before an optimizer's step, "write" halfway through a checkpoint,
"rename" before and "renamed" after a file takes its place. ["alarm", n] kills the script after n seconds, null lets it end.
Each job is a fork of this process, which has imported everything and run nothing: no job pays for the import of torch.
"""

import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimizer imports: no fork is to pay for it

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils import script

SCRIPTS = {name: importlib.import_module(name) for name in ("main", "snn", "snn_ft", "reproduce")}


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


def arm(what: str, count: float) -> None:
    """Install a moment in this process for good: it ends with its job."""
    if what == "alarm":
        signal.setitimer(signal.ITIMER_REAL, count)  # without a handler the signal ends the process
        return
    moment = Moment(count)
    if what == "step":
        torch.optim.SGD.step = moment.before(torch.optim.SGD.step)
    elif what == "write":
        torch.save = moment.within(torch.save)
    else:
        Path.replace = {"rename": moment.before, "renamed": moment.after}[what](Path.replace)


def run(job: dict) -> int:
    """Run one job in a fork; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [job["script"], *job["resume" if Path(job["checkpoint"]).is_file() else "argv"]]
        code = 1
        try:
            if job["moment"]:
                arm(*job["moment"])
            script.run(SCRIPTS[job["script"]].main)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([run(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
