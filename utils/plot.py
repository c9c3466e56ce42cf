"""Matplotlib without a screen."""

from typing import Any


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files; imported when it is needed, as it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
