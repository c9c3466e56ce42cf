"""Time in the batch: [T·B, ...], time-major; an ANN is the case T = 1."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Average x [T·B, ...], time-major, over its T steps -> [B, ...]; an ANN is the case T = 1."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).mean(0)


def repeat_over_time(x: Tensor, time_steps: int) -> Tensor:
    """Repeat x [B, ...] for each step -> [T·B, ...], time-major."""
    return x if time_steps == 1 else x.expand(time_steps, *x.shape).flatten(0, 1)


def accumulated(x: Tensor, time_steps: int) -> Tensor:
    """Return the sums over the steps so far of x [T·B, ...], of the same shape."""
    return x if time_steps == 1 else x.unflatten(0, (time_steps, -1)).cumsum(0).flatten(0, 1)


def increments(x: Tensor, time_steps: int) -> Tensor:
    """Undo `accumulated`. A max-pooling stands between the two, so that its outputs add up over T to the max-pool of the sum."""
    if time_steps == 1:
        return x
    steps = x.unflatten(0, (time_steps, -1))
    return torch.cat((steps[:1], steps.diff(dim=0))).flatten(0, 1)


def sized(x: Tensor, time_steps: int, folded: bool) -> Tensor:
    """Return a tensor without memory, of x's shape with time folded into the batch or taken out of it."""
    batch = len(x) * time_steps if folded else len(x) // time_steps
    return torch.empty(batch, *x.shape[1:], device="meta")


def floating(x: Tensor) -> Tensor:
    """Return x as floating-point numbers."""
    return x if x.is_floating_point() else x.float()


def window_sums(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return the sums of x [B, C, H, W] over windows."""
    return F.avg_pool2d(x, kernel, stride, divisor_override=1)
