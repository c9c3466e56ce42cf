"""A neuron of one's own, in one file: leaky, unsigned, reset by subtraction; snn.py --neuron tests/leaky.py:leaky."""

import torch
from torch import Tensor

LEAK = 0.9  # the part of a membrane that is left after a step


def leaky(current: Tensor, threshold: Tensor, delay: int = 0, start: float = 0.5, membranes: list[Tensor] | None = None) -> Tensor:
    """Map currents [T, B, ...] to the spike train [T, B, ...] of 0 and 1: v = 0.9 v + I, a spike where v >= θ takes θ off.

    A report that draws membranes gives a list for them; an equation without it works too.
    """
    membrane, seen, train = torch.full_like(current[0], start) * threshold, 0, []
    for step in range(len(current)):
        if membranes is not None:
            membranes.append(membrane)
        for index in range(seen, min(step + 1 + delay, len(current))):
            membrane = LEAK * membrane + current[index]
        seen = min(step + 1 + delay, len(current))
        spikes = (membrane >= threshold).to(current.dtype)
        membrane = membrane - spikes * threshold
        train.append(spikes)
    if membranes is not None:
        membranes.append(membrane)
    return torch.stack(train)
