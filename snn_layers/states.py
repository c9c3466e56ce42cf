"""States between the sites of a network, stored as one byte per value while a calibration set waits for its next unit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Site, State, Unit


@dataclass(frozen=True)
class Packed:
    """A state of an ANN whose tensors are 0..255 times a step, θ/T of the unit that put them out."""

    x: Tensor
    residual: Tensor | None
    step: Tensor
    residual_step: Tensor | None

    def state(self) -> State:
        """Return the tensors in floating point, exactly as they were."""
        residual = None if self.residual is None else self.residual * self.residual_step
        return State(self.x * self.step, residual)


def pack(state: State, step: Tensor, residual_step: Tensor | None) -> Packed:
    """Store a state whose values are 0..255 steps as one byte per value."""
    residual = None if state.residual is None else _to_bytes(state.residual, residual_step)
    return Packed(_to_bytes(state.x, step), residual, step, residual_step)


def _to_bytes(values: Tensor, step: Tensor) -> Tensor:
    return (values / step).round_().to(torch.uint8)


def spikes_as_bytes(state: State) -> State:
    """Store the spikes of a deployed network as one byte per value."""
    tensors = (state.x, state.residual)
    return State(*(x.to(torch.int8) if x is not None and x.is_floating_point() else x for x in tensors))


def unpacked(state: State | Packed) -> State:
    """Return a state in floating point."""
    return state.state() if isinstance(state, Packed) else state


def run(sites: list[Site], state: State) -> State:
    """Run a state through sites, in order."""
    for site in sites:
        state = site(state)
    return state


def advance(state: State | Packed, sites: list[Site], start: int, stop: int, levels: int) -> State | Packed:
    """Run sites[start:stop] of an ANN and pack the result.

    Args:
        levels: T, the values of an activation between 0 and θ.
    """
    if start == stop:
        return state
    state = run(sites[start:stop], unpacked(state))
    steps = [site.module.activation.threshold.detach() / levels for site in sites[:stop] if isinstance(site.module, Unit)]
    # An open block's residual is what the unit before the last one put out.
    return pack(state, steps[-1], None if state.residual is None else steps[-2])


@torch.no_grad()
def state_bytes(snn: Network, ann: Network, images: Tensor) -> int:
    """Return the bytes that the stored states of these images take at most: the SNN's in front of a unit, the ANN's behind it."""
    before = after = 0
    largest, state = 0, State(images)
    for site in ann.sites():
        state = site(state)
        before, after = after, sum(tensor.numel() for tensor in (state.x, state.residual) if tensor is not None)
        largest = max(largest, snn.time_steps * before + after)
    return largest
