"""Functions compiled by torch.compile, with the function itself as fallback."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from models import reason_of

# Triton divides approximately unless it is told to round; on a CPU this changes nothing.
OPTIONS = MappingProxyType({"eager_numerics.division_rounding": True})


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
            name, reason = self.function.__name__, reason_of(error)
            warnings.warn(f"{name} is not compiled and runs several times slower: {reason}", stacklevel=2)
            self.fused = self.function
            return result


@lru_cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """Return the one compiled version of `function`."""
    return Compiled(function)
