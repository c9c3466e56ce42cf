"""States between the sites of a network, stored as one byte per value while a calibration set waits for its next unit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Site, State, Unit


@dataclass(frozen=True)
class Packed:
    """A state whose tensors are small integers times a step: spikes in units of θ, ANN activations in units of θ/T."""

    x: Tensor
    residual: Tensor | None
    step: Tensor
    residual_step: Tensor | None

    def state(self) -> State:
        """Return the tensors in floating point, exactly as they were."""
        residual = None if self.residual is None else self.residual * self.residual_step
        return State(self.x * self.step, residual)


def pack(state: State, step: Tensor, residual_step: Tensor | None) -> Packed:
    """Store a state whose values are -1..255 steps as one byte per value."""
    residual = None if state.residual is None else _to_bytes(state.residual, residual_step)
    return Packed(_to_bytes(state.x, step), residual, step, residual_step)


def _to_bytes(values: Tensor, step: Tensor) -> Tensor:
    counts = (values / step).round_()
    return counts.to(torch.int8 if counts.min() < 0 else torch.uint8)


def unpacked(state: State | Packed) -> State:
    """Return a state in floating point."""
    return state.state() if isinstance(state, Packed) else state


def run(sites: list[Site], state: State) -> State:
    """Run a state through sites, in order."""
    for site in sites:
        state = site(state)
    return state


def advance(state: State | Packed, sites: list[Site], start: int, stop: int, levels: int) -> State | Packed:
    """Run sites[start:stop] and pack the result.

    Args:
        levels: values of an activation between 0 and θ: 1 for spikes, T for an ANN.
    """
    if start == stop:
        return state
    state = run(sites[start:stop], unpacked(state))
    steps = [site.module.activation.threshold.detach() / levels for site in sites[:stop] if isinstance(site.module, Unit)]
    # An open block's residual is what the unit before the last one put out.
    return pack(state, steps[-1], None if state.residual is None else steps[-2])


@torch.no_grad()
def state_bytes(snn: Network, ann: Network, images: Tensor) -> int:
    """Return the bytes that the packed states of SNN and ANN for these images take, at the widest site."""
    largest, states = 0, [State(images), State(images)]
    for sites in zip(snn.sites(), ann.sites(), strict=True):
        states = [site(state) for site, state in zip(sites, states, strict=True)]
        tensors = [tensor for state in states for tensor in (state.x, state.residual) if tensor is not None]
        largest = max(largest, sum(tensor.numel() for tensor in tensors))
    return largest
