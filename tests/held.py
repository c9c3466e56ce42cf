"""Runs scripts that stop before their first step until told to go on; each is a fork, which need not import torch again.

A line of the input is a job, {"place", "script", "argv"}: the step touches PLACE/here and waits for PLACE/go. For each job two
numbers are printed: that of its process, and at its end the exit code, or minus the signal that ended it. What the job itself
prints goes to PLACE/log.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimizer imports: no fork is to pay for it

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils import script

SCRIPTS = {name: importlib.import_module(name) for name in ("main", "snn_ft")}


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


def work(job: dict) -> None:
    """Do a job in this fork; does not return."""
    place = Path(job["place"])
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [job["script"], *job["argv"]]
    code = 1
    try:
        hold(place)
        script.run(SCRIPTS[job["script"]].main)
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork() or work(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
