"""Files that hold either their old or their new contents, whole, at every moment; and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

PART = ".part"  # suffix of a file that is being written; a killed run leaves it, the next one removes it


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` once it is complete and on the disk.

    Raises:
        UserError: the disk is full, the directory read-only or gone; `path` is as it was.
    """
    part = path.with_name(path.name + PART)
    try:
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save hides a failed write behind an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}; free space, permit writing or restore the directory, "
                        "then --resume (reproduce.py: the same command)") from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; an unchanged file is not read again."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _sha256(path: Path, *changes: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_parts(path: Path, names: tuple[str, ...]) -> None:
    """Remove the unfinished files that a killed run has left of `names` in a directory."""
    for name in names:
        (path / (name + PART)).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    # Until the directory is on the disk too, a power failure may undo the renaming. Not every file system supports this.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
