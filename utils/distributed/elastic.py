"""Messages between torchrun and its workers: the launch of a worker, and the error that ended a worker."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

T = TypeVar("T")


def launcher() -> str | None:
    """Return a name for the torchrun that started this process, unique to its launch; None without one.

    It is the directory that torchrun makes for its workers' errors: {run id}_{random}/attempt_{n}/{local rank}/error.json.
    The run id alone says nothing: without --rdzv-id or --standalone it is "none".
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return str(Path(file).parents[2]) if file else None


def gathered(value: T) -> list[T]:
    """Return the value of each process, by rank."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def launchers() -> list[str | None]:
    """Return the `launcher` of each process: on several nodes there is one torchrun a node."""
    return gathered(launcher())


def same_launch(began: list[str | None]) -> bool:
    """Return whether this launch also started the processes whose `launchers` were `began`, as the first process reads them."""
    now = gathered((launcher(), began))
    return bool({*now[0][1]} & {name for name, _ in now} - {None})


class ErrorFile(ErrorHandler):
    """Writes the error that ends a worker to torchrun's file: a user's mistake as one line, other errors as tracebacks.

    Args:
        line: returns an error's line, or None if it is not a user's mistake.
    """

    def __init__(self, line: Callable[[BaseException], str | None]):
        self.line = line

    def initialize(self) -> None:
        """Under torchrun, let a crash in compiled code print where the program was."""
        if self._get_error_file_path():
            super().initialize()

    def record_exception(self, e: BaseException) -> None:
        """Write the error to the file that torchrun names, if it does."""
        line, path = self.line(e), self._get_error_file_path()
        if line is None:
            super().record_exception(e)
        elif path:
            details = {"py_callstack": f"error: {line}", "timestamp": str(int(time.time()))}  # torchrun shows py_callstack
            self._write_error_file(path, json.dumps({"message": {"message": line, "extraInfo": details}}))
