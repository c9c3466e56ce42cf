"""Weights as integers times a step."""

import torch
from torch import Tensor

FINEST = 2**12  # steps in the largest of numbers that are called small integers


def common_step(values: Tensor, tolerance: float = 1e-9) -> float | None:
    """Return the largest step of which all values are multiples, None where they are no small integers times a step.

    Euclid's algorithm on the distinct magnitudes; what it takes for 0 is a hundred times as large as the tolerance, since it
    multiplies rounding errors.

    Args:
        values: of any shape, float64.
        tolerance: of the largest magnitude, within which each value is a multiple.
    """
    magnitudes = values.abs().flatten().unique()
    largest = magnitudes[-1].item()
    if largest == 0:
        return 1.0
    if len(magnitudes) > FINEST:
        return None
    step, nothing = largest, 100 * tolerance * largest
    for value in magnitudes.tolist():
        rest = value
        while rest > nothing:
            step, rest = rest, step % rest
            rest = 0.0 if step - rest <= nothing else rest
        if step * FINEST < largest:
            return None
    step = largest / round(largest / step)
    return step if ((values / step).round() * step - values).abs().max() <= tolerance * largest else None


def integers(weight: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor] | None:
    """Return (numerators, steps [C']) with weight [C', ...] = steps · numerators, None where it is not of that kind."""
    steps = [common_step(channel, tolerance) for channel in weight.double()]
    if None in steps:
        return None
    steps = torch.tensor(steps, dtype=torch.float64)
    return (weight.double() / places(steps, weight.dim())).round(), steps


def places(values: Tensor, dims: int) -> Tensor:
    """Return values [C] as [C, 1, ...] of so many axes."""
    return values.view(-1, *[1] * (dims - 1))
