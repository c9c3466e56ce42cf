"""Matplotlib without a screen."""

from typing import Any


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files; imported only when needed, since that takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
