"""A run directory has one writer: the process that holds the system's lock on the file run.lock in it.

Such a lock belongs to an open file and ends with its process, so that nothing is ever left to clear away. If a node dies, the file
server frees its lock after a minute or two. The text of the file only names the holder. Readers need no lock, since each file of
a run is replaced whole.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from ..distributed.processes import Place
from ..errors import UserError

LOCK = "run.lock"
WAIT = 3.0  # seconds in which the system removes a process that has just been killed
RESTART_WAIT = 150.0  # the same after a restart by torchrun: seconds in which a file server frees the lock of a dead node
POLL = 0.05  # seconds between two tries
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a run directory if needed and let no other run write there; of several processes the first one holds the lock.

    A directory that stays empty is removed at the end.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    if not Place.of_environment().first:
        yield
        return
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    try:
        opened = [acquired(path, RESTART_WAIT if restarted else WAIT)]
        sign(path)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; permit writing, or name another --result DIR") from error

    def release() -> None:
        while opened:
            os.close(opened.pop())

    os.register_at_fork(after_in_child=release)  # a process that loads images may outlive the run, and must not hold the lock
    try:
        yield
    finally:
        with suppress(OSError):  # the disk may be gone or read-only by now
            if ours(holder(path)):
                (path / LOCK).unlink()  # while it is locked: a process that waits sees that the file is gone, and makes another
        release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def acquired(path: Path, wait: float) -> int:
    """Return the open, locked lock file of a directory, which is made if needed.

    Args:
        wait: seconds after which to give up.

    Raises:
        UserError: another process holds it.
        OSError: the directory cannot be made or written.
    """
    end = time.monotonic() + wait
    while True:
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process found the directory empty at its end and removed it
            # Opened for reading if that is enough, so that the disk can become read-only under a run.
            for mode in (os.O_RDONLY, os.O_RDWR):
                descriptor = os.open(path / LOCK, mode | os.O_CREAT, 0o666)
                if locked(descriptor, path) and os.fstat(descriptor).st_nlink:
                    return descriptor
                os.close(descriptor)
        if time.monotonic() > end:
            raise UserError(f"{path} is written by {described(holder(path))}: wait for it, end it, or put this run elsewhere with "
                            "--result DIR")
        time.sleep(POLL)


def locked(descriptor: int, path: Path) -> bool:
    """Lock an open file and return True, also if the file system has no locks; False if another process has locked it."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCKS:
            print(f"{path} is on a file system without locks: start no second run there", file=sys.stderr)
            return True
        if error.errno == errno.EBADF:  # NFS locks only files that are open for writing
            return False
        os.close(descriptor)
        raise


def sign(path: Path) -> None:
    """Write into the lock file who holds it and since when."""
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    (path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": now}) + "\n")


def holder(path: Path) -> dict[str, Any]:
    """Return the holder that a lock file names: "host", "process", "since"; empty if it cannot be read."""
    try:
        found = json.loads((path / LOCK).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.keys() == {"host", "process", "since"} else {}


def ours(found: dict[str, Any]) -> bool:
    """Return whether a `holder` is this process."""
    return (found.get("host"), found.get("process")) == (socket.gethostname(), os.getpid())


def described(found: dict[str, Any]) -> str:
    """Return a `holder` as words."""
    return "process {process} on {host} since {since}".format(**found) if found else "another process"


def check_held(path: Path) -> None:
    """Raise UserError if this run's directory was deleted or moved and another run has taken its place."""
    found = holder(path)
    if path.is_dir() and not ours(found):
        raise UserError(f"{path} is no longer the directory of this run, but written by {described(found)}: nothing was saved; "
                        "start again, elsewhere with --result DIR")
