"""The frame of the scripts: the device, the place among processes, the profiler, and the errors of main().

The frame turns a user's mistake into one line and exit code 2.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from models import reason_of

from .config import RunSettings
from .distributed.elastic import ErrorFile
from .distributed.processes import TIMEOUT, Place, group
from .errors import LostError, UserError

PROFILE_ROWS = 15


def choose_device(index: int | None, place: Place | None = None) -> torch.device:
    """Return the GPU with this index (None: that of the local rank); the CPU if there is none, with a note if one was asked for.

    Raises:
        UserError: there are GPUs, but not this one, or one for several processes.
    """
    place = place or Place()
    available = torch.cuda.device_count()
    if available == 0:
        if index is not None and place.first:
            print(f"no GPU here: -id {index} is ignored, the CPU is used", file=sys.stderr)
        return torch.device("cpu")
    if index is not None and place.world > 1:
        raise UserError(f"-id {index}: of {place.world} processes each takes the GPU of its local rank; leave -id out")
    if index is None and place.local_rank >= available:
        raise UserError(f"local rank {place.local_rank}: this process sees {available} GPU{'s' * (available > 1)} of its node; "
                        "start as many processes there, --nproc_per_node, and let each see all")
    index = place.local_rank if index is None else index
    if index >= available:
        raise UserError(f"-id {index}: this machine has {available} GPU{'s' * (available > 1)}, numbered from 0")
    return torch.device("cuda", index)


@contextmanager
def session(run: RunSettings, seed: int) -> Iterator[tuple[torch.device, Place]]:
    """Choose the device, join the other processes, make the run repeatable; yield the device and the place of this process."""
    repeatable(run, seed)
    place = Place.of_environment(run.local_rank)
    device = choose_device(run.device, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # first of all: otherwise memory of the first GPU is taken too, and graphs are captured there
    with group(place, device, TIMEOUT if run.timeout is None else run.timeout):
        yield device, place


def repeatable(run: RunSettings, seed: int) -> None:
    """Seed the generators and set the determinism that the flags ask for."""
    torch.manual_seed(seed)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = run.tf32
    torch.backends.cudnn.benchmark = not run.deterministic
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs this to be deterministic
    if run.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler, which takes a second
        torch.use_deterministic_algorithms(run.deterministic, warn_only=True)


@contextmanager
def profiled(run: RunSettings) -> Iterator[None]:
    """Profile what runs inside and print the costliest operators, if --prof asks for it."""
    if not run.prof:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=PROFILE_ROWS))


def run(main: Callable[[], object]) -> None:
    """Call a script's `main`; a user's mistake ends in one line on stderr and exit code 2.

    Under torchrun the error that ends this process is also the one in torchrun's summary.
    """
    try:
        record(partial(told, main), ErrorFile(mistake))()
    except KeyboardInterrupt:
        print("interrupted; training and tuning go on with --resume, reproduce.py with the same command", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `| head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if mistake(error) is None:
            raise
        sys.exit(2)


def told(main: Callable[[], object]) -> object:
    """Return the result of `main`; print a user's mistake before torchrun records it, and let the process at fault end first."""
    try:
        return main()
    except Exception as error:
        if (line := mistake(error)) is not None:
            print(f"error: {line}", file=sys.stderr, flush=True)
        if isinstance(error, LostError):
            time.sleep(error.patience)
        raise


def mistake(error: BaseException) -> str | None:
    """Return the line for an error that a user can mend; None for another."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}; choose another path or change its permissions"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{reason_of(error)}; lower --batch-size"
    return None
