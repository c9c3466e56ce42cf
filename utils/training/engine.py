"""One training epoch, one evaluation, the learning-rate schedules and the optimizer: shared by every script."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from quant import quantized_once, scalars, thresholds

from ..errors import UserError
from .metrics import Meter, Scores
from .step import Step, autocast

# Parts of a run after which the "step" schedule falls: epochs 150 and 225 of CIFAR's 300; 20, 40 and 50 of ImageNet's 60.
MILESTONES = MappingProxyType({"cifar": (1 / 2, 3 / 4), "imagenet": (1 / 3, 2 / 3, 5 / 6)})
CLIP_DECAY = 1e-4  # weight decay of thresholds and weight clips


def learning_rate(schedule: str, progress: float, milestones: tuple[float, ...]) -> float:
    """Return the factor on the initial learning rate after `progress` in [0, 1] of the run.

    "step": x0.1 at each milestone. "cosine": a half cosine to 0.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 0.1 ** sum(progress >= milestone for milestone in milestones)


def epoch_rate(lr: float, schedule: str, epoch: int, epochs: int, milestones: tuple[float, ...] = (),
               warmup: float = 0.0) -> Callable[[float], float]:
    """Return an epoch's learning rate as a function of its finished part in [0, 1).

    Over the first `warmup` epochs it rises in proportion; a cosine falls over the epochs after them.
    """
    def rate(part: float) -> float:
        done = epoch + part
        if done < warmup:
            return lr * min(1.0, (done + 0.01) / warmup)  # a rate of 0 would waste a batch
        skipped = warmup if schedule == "cosine" else 0.0
        return lr * learning_rate(schedule, (done - skipped) / (epochs - skipped), milestones)

    return rate


def sgd(network: nn.Module, lr: float, momentum: float, weight_decay: float, nesterov: bool = False,
        threshold_lr: float | None = None, clip_lr: float | None = None) -> torch.optim.SGD:
    """Return SGD in which thresholds θ and weight clips α have a weight decay of their own, and rates of their own if given.

    A group's "factor" multiplies the learning rate, which must not be 0 where another rate is given. Parameters have their
    names, by which a run that goes on finds their momenta, also with other rates.
    """
    known, of_activations = scalars(network), thresholds(network)
    groups: dict[str | float, list[tuple[str, nn.Parameter]]] = {"weights": []}  # then the scalars, by the factor of their rate
    for name, parameter in network.named_parameters():
        own = threshold_lr if name in of_activations else clip_lr
        group = "weights" if name not in known else 1.0 if own is None else own / lr
        groups.setdefault(group, []).append((name, parameter))
    made = [{"params": parameters, "weight_decay": weight_decay, "factor": 1.0} if factor == "weights" else
            {"params": parameters, "weight_decay": CLIP_DECAY, "factor": factor}
            for factor, parameters in groups.items() if parameters]
    return torch.optim.SGD(made, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def progress_bar(batches: Iterable, name: str, limit: int | None = None, every: int = 1) -> tqdm:
    """Return a bar over the first `limit` batches, drawn after each `every` of them; only on a terminal, by the first process."""
    silent = True if dist.is_initialized() and dist.get_rank() > 0 else None
    shown = min(len(batches), limit or len(batches))
    return tqdm(islice(batches, limit), name, shown, leave=False, disable=silent, dynamic_ncols=True, miniters=every)


def train_epoch(step: Step, batches: Iterable[tuple[Tensor, Tensor]], rate: Callable[[float], float], print_freq: int = 50,
                limit: int | None = None, name: str = "train", accumulate: int = 1) -> Scores:
    """Train for one pass over `batches` of (images, labels); return the scores during training.

    Args:
        rate: learning rate as a function of the finished part of this epoch in [0, 1).
        print_freq: batches between two checks of the loss, which also update the progress bar.
        limit: stop after that many batches.
        accumulate: batches whose mean gradient makes one step; a last group may be smaller.

    Raises:
        UserError: the loss was not finite, or a threshold or clip not positive; names batch and layer. That step and all after it
            are skipped.
    """
    step.begin()
    began, seen = time.monotonic(), 0
    steps = min(len(batches), limit or len(batches))
    bar = progress_bar(batches, name, limit)
    for number, (images, labels) in enumerate(bar):
        ends = (number + 1) % accumulate == 0 or number + 1 == steps
        group = min(accumulate, steps - number // accumulate * accumulate)
        now = rate(number / len(batches))
        try:
            step(images, labels, now, group, ends)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # BN has a single image
                raise
            raise UserError(f"{error} (batch {number} of {name}): raise --batch-size") from error
        seen += len(labels)
        if (number + 1) % print_freq == 0:
            loss = step.check(name)
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{now:.2g}", images=f"{seen / (time.monotonic() - began):.0f}/s")
    step.check(name)
    return step.meter.scores()


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], amp: bool = False, limit: int | None = None,
             name: str = "evaluate") -> Scores:
    """Return the scores of a network in eval mode; its training mode is restored."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    meter = Meter(device)
    with quantized_once(network):
        for images, labels in progress_bar(batches, name, limit):
            with autocast(device, amp):
                logits = network(images)
            meter.update(logits, labels)
    network.train(was_training)
    return meter.scores()
