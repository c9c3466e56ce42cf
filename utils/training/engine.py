"""One training epoch, one evaluation, the learning-rate schedules and the optimizer: shared by every script."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from quant import clips, fault, quantized_once

from ..errors import UserError
from .guards import first_fault, inner, is_sound
from .metrics import Meter, Scores

# Parts of a run after which the "step" schedule falls: epochs 150 and 225 of CIFAR's 300; 20, 40 and 50 of ImageNet's 60.
MILESTONES = MappingProxyType({"cifar": (1 / 2, 3 / 4), "imagenet": (1 / 3, 2 / 3, 5 / 6)})


def learning_rate(schedule: str, progress: float, milestones: tuple[float, ...]) -> float:
    """Return the factor on the initial learning rate after `progress` in [0, 1] of the run.

    "step": x0.1 at each milestone. "cosine": a half cosine to 0.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 0.1 ** sum(progress >= milestone for milestone in milestones)


def epoch_rate(lr: float, schedule: str, epoch: int, epochs: int, milestones: tuple[float, ...] = ()) -> Callable[[float], float]:
    """Return an epoch's learning rate as a function of its finished part in [0, 1)."""
    return lambda part: lr * learning_rate(schedule, (epoch + part) / epochs, milestones)


def sgd(network: nn.Module, lr: float, momentum: float, weight_decay: float, clip_weight_decay: float = 1e-4) -> torch.optim.SGD:
    """Return SGD in which the learned clips (thresholds θ and weight clips α) have a weight decay of their own."""
    clips, weights = [], []
    for name, parameter in network.named_parameters():
        (clips if name.endswith((".alpha", ".threshold")) else weights).append(parameter)
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": clips, "weight_decay": clip_weight_decay}]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=lr, momentum=momentum, fused=True)


def restore_(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer its saved momenta, in place; rates and decays stay those it was made with.

    Raises:
        ValueError: no state of an optimizer of these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    momenta = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(momenta, dict) or not momenta.keys() <= set(range(len(parameters))):
        raise ValueError("holds no state of an optimizer of this network")
    for index, entry in momenta.items():
        momentum = entry.get("momentum_buffer") if isinstance(entry, dict) else None
        if momentum is not None and not (isinstance(momentum, Tensor) and momentum.shape == parameters[index].shape
                                         and momentum.isfinite().all()):
            raise ValueError(f"holds a momentum {index} that does not fit its parameter")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": momenta})


def autocast(device: torch.device, enabled: bool, cache: bool = True) -> AbstractContextManager:
    """Return a bfloat16 autocast context for the device; quantizers compute in float32 within it.

    The cache of cast weights must be off where an optimizer steps inside the context.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)


def progress_bar(batches: Iterable, name: str, limit: int | None = None, total: int | None = None, every: int = 1) -> tqdm:
    """Return a bar over the first `limit` batches, drawn after `every` so many; only on a terminal, by the first process."""
    total = len(batches) if total is None else total
    silent = True if dist.is_initialized() and dist.get_rank() > 0 else None
    return tqdm(islice(batches, limit), name, min(total, limit or total), leave=False, disable=silent, dynamic_ncols=True,
                miniters=every)


def train_epoch(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer,
                rate: Callable[[float], float], amp: bool = False, print_freq: int = 10, limit: int | None = None,
                name: str = "train", teacher: nn.Module | None = None, accumulate: int = 1) -> Scores:
    """Train for one pass over `batches` of (images, labels) and return the scores on the way.

    Args:
        rate: learning rate as a function of the finished part of this epoch in [0, 1).
        print_freq: batches between two updates of the figures in the progress bar.
        limit: stop after that many batches.
        teacher: learn its probabilities (Kullback-Leibler divergence) instead of the labels.
        accumulate: batches whose mean gradient makes one step; a last group may be smaller.

    Raises:
        UserError: the loss is no longer finite, or a threshold or clip no longer positive; names batch and layer, and the step
            that would spread it is not taken.
    """
    network.train()
    positive = clips(network)
    meter, began, seen = Meter(next(network.parameters()).device), time.monotonic(), 0
    steps = min(len(batches), limit or len(batches))
    bar = progress_bar(batches, name, limit)
    optimizer.zero_grad(set_to_none=True)
    for step, (images, labels) in enumerate(bar):
        ends = (step + 1) % accumulate == 0 or step + 1 == steps
        group = min(accumulate, steps - step // accumulate * accumulate)
        try:
            with nullcontext() if ends or not hasattr(network, "no_sync") else network.no_sync():
                logits, loss = forward(network, images, labels, amp, teacher)
                if not is_sound(loss, positive):
                    raise ValueError(f"the loss is {loss.item():g}: {first_fault(network, images)}")
                (loss / group).backward()
        except ValueError as error:  # no positive weight left, or a single image for BN
            reason = fault(inner(network), statistics=False) or error
            raise UserError(f"{reason} (batch {step} of {name}): lower --lr, or raise --batch-size; --resume takes up the last "
                            "checkpoint") from error
        if ends:
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate(step / len(batches))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        meter.update(logits.detach(), labels)
        seen += len(labels)
        if step % print_freq == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{rate(step / len(batches)):.2g}",
                            images=f"{seen / (time.monotonic() - began):.0f}/s")
    return meter.scores()


def forward(network: nn.Module, images: Tensor, labels: Tensor, amp: bool, teacher: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return logits [B, classes] and the loss of a batch."""
    with autocast(images.device, amp):
        logits = network(images)
    return logits, F.cross_entropy(logits.float(), labels) if teacher is None else divergence(logits, teacher, images)


def divergence(logits: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
    """Return KL(teacher's probabilities || ours), the mean over the batch, in nats; logits [B, classes]."""
    with torch.no_grad():
        target = F.log_softmax(teacher(images).float(), dim=1)
    return F.kl_div(F.log_softmax(logits.float(), dim=1), target, reduction="batchmean", log_target=True)


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
