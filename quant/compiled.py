"""Elementwise functions fused into one pass by torch.compile, with the function itself as fallback."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


class Compiled:
    """A function, compiled on first use for every shape; the compiler keeps its results on disk for the next process.

    Where it fails, as without a C++ compiler or beyond the limit, a warning says so and the function runs as it is.

    Args:
        limit: of versions, one for each set of arguments other than tensors; a sweep over all delays at 4 bits takes about 100.
    """

    def __init__(self, function: Callable[..., Any], limit: int = 256):
        self.function = function
        self.fused = torch.compile(function, dynamic=True, fullgraph=True, recompile_limit=limit)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        try:
            return self.fused(*args)
        except Exception as error:  # the compiler's have no common class
            result = self.function(*args)  # a mistake in the arguments raises here
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"{self.function.__name__} is not compiled and runs several times slower: {reason}", stacklevel=2)
            self.fused = self.function
            return result


@lru_cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """Return the one compiled version of `function`."""
    return Compiled(function)
