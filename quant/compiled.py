"""Functions compiled by torch.compile, with the function itself as fallback, and what goes into them."""

import inspect
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Triton divides approximately unless it is told to round; on a CPU this changes nothing.
OPTIONS = MappingProxyType({"eager_numerics.division_rounding": True})


class BytesAtOnce(TorchFunctionMode):
    """torch.stack of bytes as one of another type of that size: of bytes on a CPU the compiler makes it in a second pass."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if function is torch.stack and all(part.dtype == torch.uint8 for part in args[0]):
            parts: list[Tensor] = [part.view(torch.float8_e4m3fn) for part in args[0]]
            return torch.stack(parts, *args[1:], **(kwargs or {})).view(torch.uint8)
        return function(*args, **(kwargs or {}))


class Compiled:
    """A function, compiled on first use; the compiler keeps its results on disk for the next process.

    If compiling fails, for example without a C++ compiler or beyond the limit, a warning says so and the function runs as it is.

    Args:
        limit: number of versions, one for each set of arguments other than tensors; a sweep of delays at 4 bits needs about 100.
        dynamic: one version serves all shapes; False: each shape gets its own.
        whole: a function that is not one graph runs as it is; False: it is compiled as several graphs.
    """

    def __init__(self, function: Callable[..., Any], limit: int = 256, dynamic: bool = True, whole: bool = True):
        self.function, self.limit = function, limit
        self.fused = torch.compile(function, dynamic=dynamic, fullgraph=whole, options=dict(OPTIONS))

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        try:
            with torch._dynamo.config.patch(recompile_limit=self.limit):
                return self.fused(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's errors have no common class
            result = self.function(*args)  # a mistake in the arguments raises here
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"{self.function.__name__} is not compiled and runs several times slower: {reason}", stacklevel=2)
            self.fused = self.function
            return result


@lru_cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """Return the one compiled version of `function`."""
    return Compiled(function)


def sources(function: Callable[..., Any]) -> list[Path]:
    """Return the files, sorted, of a function and of all functions that it calls by a global name; those of torch are left out."""
    found, waiting = set(), [function]
    while waiting:
        one = waiting.pop()
        found.add(one)
        called = [one.__globals__.get(name) for name in names(one.__code__)]
        waiting += [other for other in called if isinstance(other, FunctionType) and other not in found
                    and not other.__module__.startswith("torch.")]
    return sorted({Path(inspect.getsourcefile(one)) for one in found})


def names(code: CodeType) -> set[str]:
    """Return the global names in a function's code, inner functions and comprehensions included."""
    return set(code.co_names).union(*(names(part) for part in code.co_consts if isinstance(part, CodeType)))


@lru_cache
def tools() -> tuple[str, str]:
    """Return the compiler's version (empty without a compiler) and the processor's abilities."""
    try:
        command = [os.environ.get("CXX", "g++"), "--version"]
        compiler = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    except OSError:
        compiler = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    return compiler, processor
