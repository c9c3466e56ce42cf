"""The integrate-and-fire equation, and what it comes to in a single step."""

import torch
from torch import Tensor

HALF = 0.5  # membrane at the start, in thresholds: spikes then count as rounding does
RETRACTION = -1e-3  # membrane at or below which a signed neuron takes a spike back


def rounded(current: Tensor, threshold: Tensor, most: int) -> Tensor:
    """Return how many spikes, 0 to `most`, a neuron fires that sees all of its current in one step.

    n = clip(round(I/θ), 0, most), half to even: with θ/T for θ it is a quantized ReLU.
    """
    return (current / threshold).round().clamp(0, most)


@torch.no_grad()
def integrate_and_fire(current: Tensor, threshold: Tensor, signed: bool = True, delay: int = 0,
                       start: float = HALF, membranes: list[Tensor] | None = None) -> Tensor:
    """Return the spike train of neurons that start at half their threshold and reset by subtraction.

        v = θ/2, n = 0
        for t = 1..T:   v += I_t
                        s = +1 if v >= θ;  else -1 if signed and v <= -1e-3 and n > 0;  else 0
                        v -= s·θ;  n += s

    With a delay d, output step t has seen I_1..I_{t+d}; d = T is accumulate-then-fire, so that the spike count is
    clip(floor(ΣI/θ + 1/2), 0, T), the quantized activation. The function has no gradient.

    Args:
        current: I, [T, B, ...], float32 or float64, in the units of θ; never changed.
        threshold: θ > 0, a scalar.
        signed: allow negative spikes, never more than there were positive ones before.
        delay: d, 0 to T steps.
        start: v before the first step, in θ: 1/2, or 0 as an ablation, whose count rounds down.
        membranes: gets v [B, ...] before the first step and after each step.

    Returns:
        spike_train: [T, B, ...] in {-1, 0, 1}, of the dtype of `current`.

    Raises:
        ValueError: a delay outside 0..T.

    Source: Fast-SNN (Hu et al., TPAMI 2023), eq. 1-3 and 15 (signed neuron); delay: not in the paper.
    """
    time_steps = len(current)
    if not 0 <= delay <= time_steps:
        raise ValueError(f"delay is {delay}: choose 0 to T = {time_steps}")
    spike_train: list[Tensor] = []  # compiled, a write into a part of one tensor would copy the whole of it
    membrane = torch.empty_like(current[0]).copy_(threshold * start)
    # Comparisons are written into float tensors: boolean masks are several times slower on a CPU.
    fired, retracted = torch.zeros_like(membrane), torch.empty_like(membrane)
    seen = 0
    if membranes is not None:
        membranes.append(membrane.clone())
    for step in range(time_steps):
        while seen < min(step + 1 + delay, time_steps):
            membrane.add_(current[seen])
            seen += 1
        spikes = torch.ge(membrane, threshold, out=torch.empty_like(membrane))
        if signed:
            torch.le(membrane, RETRACTION, out=retracted)
            # Of 0 or 1 wanted and n = 0, 1, 2, ... to give, the smaller number is taken back.
            spikes.sub_(torch.minimum(retracted, fired, out=retracted))
            fired.add_(spikes)
        membrane.addcmul_(spikes, threshold, value=-1)
        spike_train.append(spikes)
        if membranes is not None:
            membranes.append(membrane.clone())
    return torch.stack(spike_train)
