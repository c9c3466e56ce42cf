"""Functions compiled ahead of time, into packages on the disk that the next process loads in a fraction of a second.

torch.compile keeps its results too, but it traces and guards each version of a function anew in each process. For 15 time steps
that takes several times as long as the network takes for a few hundred images. A package needs neither.

A package is code. Its name depends on all that went into it (the files of its functions, the arguments other than tensors,
types, torch, compiler, processor, threads). It is written whole or not at all, and loaded only if the file and its directory
belong to this user and nobody else may write there. What no process has loaded for two months is deleted.
"""

import hashlib
import importlib
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .compiled import OPTIONS, BytesAtOnce, compiled, sources, tools

# What calls the loops, once, takes longer to compile than they do.
QUICK = MappingProxyType({"aot_inductor.compile_wrapper_opt_level": "O0"})
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
KEPT = 60 * 24 * 3600  # seconds for which a package stays that is not loaded: edited functions leave theirs behind


class Packaged:
    """A function of tensors and plain values, without a gradient; on a CPU its versions come from packages.

    Each set of plain values, types and first dimensions has a version of its own; in it, another dimension is either 1 or of
    any size. Arguments that do not fit, and versions that cannot be packaged, are left to `compiled`.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.versions: dict[str, Callable[..., Tensor] | None] = {}
        self.noted: dict[Path, tuple] | None = None  # see `built_together`

    def __call__(self, *args: Any) -> Tensor:
        """Call the function."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not all(map(fits, tensors)):
            return compiled(self.function)(*args)
        key = specification(args)
        if key not in self.versions and self.noted is not None and (path := missing(self.function, key)):
            self.noted[path] = tuple(value.to("meta") if isinstance(value, Tensor) else value for value in args)
            return self.function(*args)
        if key not in self.versions:
            self.versions[key] = version(self.function, args, key)
        found = self.versions[key]
        return compiled(self.function)(*args) if found is None else found(*tensors)


class Body(nn.Module):
    """A function as a module of its tensors alone, to be exported."""

    def __init__(self, function: Callable[..., Tensor], args: tuple):
        super().__init__()
        self.function, self.args = function, tuple(None if isinstance(value, Tensor) else value for value in args)
        self.places = tuple(index for index, value in enumerate(args) if isinstance(value, Tensor))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call the function with the tensors in their places."""
        given = dict(zip(self.places, tensors, strict=True))
        args = [given.get(place, value) for place, value in enumerate(self.args)]
        with BytesAtOnce():
            return self.function(*args)


@lru_cache
def packaged(function: Callable[..., Tensor]) -> Packaged:
    """Return the one packaged version of `function`."""
    return Packaged(function)


def built_together(functions: Collection[Callable[..., Tensor]], run: Callable[[], None]) -> None:
    """Call `run`, with the packages that these functions need in it; what is missing is built first, on each core of this process.

    Which are needed is found by a first call, in which a function without its package runs as it is. A package that could not be
    built is left to its next call.
    """
    parts = [packaged(function) for function in functions]
    for part in parts:
        part.noted = {}
    try:
        run()
        jobs = [(part.function.__module__, part.function.__name__, args, str(path)) for part in parts
                for path, args in part.noted.items()]
    finally:
        for part in parts:
            part.noted = None
    if not jobs:
        return
    command = [sys.executable, "-c", "from quant.packaged import build_all; build_all()"]
    count = min(len(jobs), torch.get_num_threads())
    builders = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
                for _ in range(count)]
    for number, builder in enumerate(builders):
        given = io.BytesIO()
        torch.save((torch.get_num_threads(), jobs[number::count]), given)
        with suppress(BrokenPipeError), builder.stdin as pipe:
            pipe.write(given.getvalue())
    for builder in builders:
        builder.wait()
    run()


def build_all() -> None:
    """Build the packages that `built_together` names on the standard input."""
    threads, jobs = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=True)
    torch.set_num_threads(threads)
    for module, name, args, path in jobs:
        build(getattr(importlib.import_module(module), name), args, Path(path))


def fits(tensor: Tensor) -> bool:
    """Return whether a package may take a tensor: its code reads a CPU's memory in order."""
    return (tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dim() > 0
            and not (tensor.requires_grad and torch.is_grad_enabled()))


def specification(args: tuple) -> str:
    """Return what tells versions apart: types and first dimensions of tensors, which other dimensions are 1, all other values."""
    return str([(str(value.dtype), value.shape[0], [size == 1 for size in value.shape[1:]]) if isinstance(value, Tensor) else value
                for value in args])


def version(function: Callable[..., Tensor], args: tuple, key: str) -> Callable[..., Tensor] | None:
    """Return a version of a function, loaded or else built; None if neither works."""
    try:
        path = package_path(function, key)
        if path is None:
            return None
        if private(path):
            with suppress(RuntimeError):  # damaged: it is built again
                return load(path)
        build(function, args, path)
        return load(path)
    except Exception:  # the compiler's errors have no common class; `compiled` says what is wrong
        return None


def missing(function: Callable[..., Tensor], key: str) -> Path | None:
    """Return the path of a version's package if it is not there and can be built."""
    compiler, _ = tools()
    path = package_path(function, key) if compiler else None
    return None if path is None or private(path) else path


def load(path: Path) -> Callable[..., Tensor]:
    """Return the function in a package.

    Like torch._inductor.aoti_load_package, which first imports the compiler: that takes longer than all else in a new process.

    Raises:
        RuntimeError: the file is damaged.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    with suppress(OSError):
        path.touch()
    return lambda *tensors: loader.run(list(tensors))[0]


def package_path(function: Callable[..., Tensor], key: str) -> Path | None:
    """Return the path of a version, built or not; None if the user has no private directory for it."""
    files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sources(function)]
    made_of = [function.__qualname__, files, key, torch.__version__, dict(OPTIONS), torch.get_num_threads(), *tools()]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fast-snn"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    return directory / f"{function.__name__}-{name}.pt2" if private(directory) else None


def private(path: Path) -> bool:
    """Return whether a path exists, belongs to this user and cannot be written by others."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE and not stat.S_ISLNK(found.st_mode)


def build(function: Callable[..., Tensor], args: tuple, path: Path) -> None:
    """Write the package of a version, for tensors like those in `args`."""
    with torch.inference_mode(False), torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as place:
        tensors = tuple(torch.zeros(value.shape, dtype=value.dtype) for value in args if isinstance(value, Tensor))
        fixed, free = torch.export.Dim.STATIC, torch.export.Dim.AUTO
        sizes = tuple({axis: free if axis and size > 1 else fixed for axis, size in enumerate(tensor.shape)} for tensor in tensors)
        exported = torch.export.export(Body(function, args), tensors, dynamic_shapes={"tensors": sizes})
        part = Path(place) / "function.pt2"
        torch._inductor.aoti_compile_and_package(exported, package_path=str(part), inductor_configs={**OPTIONS, **QUICK})
        part.chmod(0o600)
        part.replace(path)
        forget_unused(path.parent)


def forget_unused(directory: Path) -> None:
    """Delete the packages that no process has loaded for `KEPT` seconds."""
    for package in directory.glob("*.pt2"):
        with suppress(FileNotFoundError):  # another process deletes too
            if time.time() - package.stat().st_mtime > KEPT:
                package.unlink()
