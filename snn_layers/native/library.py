"""C++ files of this repository as libraries: compiled on first use, in a few seconds, and kept for the next process.

A library is code. Its name depends on all that went into it (source files, the flags, the compiler, the processor). It is written
whole or not at all, and loaded only if the file and its directory belong to this user and nobody else may write there.
"""

import ctypes
import hashlib
import json
import os
import platform
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

# No contraction: a product is rounded before it is added, as in PyTorch, so that spikes are the same to the last bit.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared",
         "-fPIC")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@lru_cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return the library of a source file; None without a compiler, or without a private directory for it."""
    try:
        path = library_path(source)
        if path is None:
            return None
        if not private(path):
            build(source, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


def library_path(source: Path) -> Path | None:
    """Return the path of a library, built or not; None if the user has no private directory for it."""
    files = [file.read_text("utf-8") for file in sorted(source.parent.glob("*.[ch]pp"))]  # it may include any of them
    made_of = [source.name, files, FLAGS, version(), processor()]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fast-snn"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    return directory / f"{source.stem}-{name}.so" if private(directory) else None


def private(path: Path) -> bool:
    """Return whether a path exists, belongs to this user and cannot be written by others."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE and not stat.S_ISLNK(found.st_mode)


def build(source: Path, path: Path) -> None:
    """Compile a source file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        part = Path(place) / path.name
        subprocess.run([compiler(), *FLAGS, str(source), "-o", str(part)], check=True, capture_output=True)
        part.chmod(0o600)
        part.replace(path)


def compiler() -> str:
    """Return the C++ compiler's command: $CXX, or g++."""
    return os.environ.get("CXX", "g++")


def version() -> str:
    """Return what the compiler says of its version."""
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def processor() -> str:
    """Return the processor's name and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
