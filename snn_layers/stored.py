"""Values between the units of a network, stored as one byte each until the next unit is tuned."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import INPUT, Network, Part, Values, live
from quant import time_steps


@dataclass(frozen=True)
class Packed:
    """Outputs of an ANN's unit: 0..255 times a step, θ/T."""

    bytes: Tensor
    step: Tensor

    def unpacked(self) -> Tensor:
        """Return the values in floating point, exactly as they were."""
        return self.bytes * self.step


def unpacked(value: Any) -> Any:
    """Return a value in floating point."""
    return value.unpacked() if isinstance(value, Packed) else value


def advance(ann: Network, unit: Part, values: Values) -> Values:
    """Run a unit of an ANN on stored values; return, stored, the values that later units still read."""
    reads = {name: unpacked(values[name]) for name in unit.inputs}
    current, shared = ann.run(unit, reads)
    relu = ann.activation(unit.name)
    step = relu.threshold.detach() / time_steps(ann.bit)
    fired = Packed((relu(current) / step).round_().to(torch.uint8), step)
    return live({**values, **shared, unit.name: fired}, unit)


def spikes_as_bytes(values: Values, units: dict[str, Any]) -> Values:
    """Store the spikes of a deployed network's units as one byte per value."""
    return {name: value.to(torch.int8) if name in units and value.is_floating_point() else value for name, value in values.items()}


@torch.no_grad()
def stored_bytes(snn: Network, ann: Network, images: Tensor) -> int:
    """Return how many bytes the stored values of these images take at most: the SNN's before a unit, the ANN's after it."""
    largest, before, values = 0, 0, {INPUT: images}
    for unit in ann.graph.units:
        values = ann.advance(unit, values)
        # One byte for each output of a unit, eight for each other value; images are those of the batches.
        sizes = {name: values[name].numel() * (1 if name in ann.graph.activations else 8) for name in values if name != INPUT}
        times = {name: snn.time_steps if ann.graph.flow.folded(ann.graph.values[name]) else 1 for name in sizes}
        largest = max(largest, before + sum(sizes.values()))
        before = sum(size * times[name] for name, size in sizes.items())
    return largest
