"""One training epoch, one evaluation, the learning-rate schedules and the optimizer: shared by every script."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from quant import quantized_once

from .errors import UserError
from .metrics import Meter, Scores


def learning_rate(schedule: str, progress: float) -> float:
    """Return the factor on the initial learning rate after `progress` in [0, 1] of the run.

    "step": x0.1 at 1/2 and 3/4 of the run (epochs 150 and 225 of the published 300). "cosine": a half cosine to 0.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))


def epoch_rate(lr: float, schedule: str, epoch: int, epochs: int) -> Callable[[float], float]:
    """Return an epoch's learning rate as a function of its finished part in [0, 1)."""
    return lambda part: lr * learning_rate(schedule, (epoch + part) / epochs)


def sgd(network: nn.Module, lr: float, momentum: float, weight_decay: float, clip_weight_decay: float = 1e-4) -> torch.optim.SGD:
    """Return SGD in which the learned clips (thresholds θ and weight clips α) have a weight decay of their own."""
    clips, weights = [], []
    for name, parameter in network.named_parameters():
        (clips if name.endswith((".alpha", ".threshold")) else weights).append(parameter)
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": clips, "weight_decay": clip_weight_decay}]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=lr, momentum=momentum, fused=True)


def autocast(device: torch.device, enabled: bool, cache: bool = True) -> AbstractContextManager:
    """Return a bfloat16 autocast context for the device; quantizers compute in float32 within it.

    The cache of cast weights must be off where an optimizer steps inside the context.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)


def progress_bar(batches: Iterable, name: str, limit: int | None = None, total: int | None = None) -> tqdm:
    """Return a bar over the first `limit` batches; silent where stderr is no terminal."""
    total = len(batches) if total is None else total
    return tqdm(islice(batches, limit), name, min(total, limit or total), leave=False, disable=None, dynamic_ncols=True)


def train_epoch(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer,
                rate: Callable[[float], float], amp: bool = False, print_freq: int = 10, limit: int | None = None,
                name: str = "train", teacher: nn.Module | None = None) -> Scores:
    """Train for one pass over `batches` of (images, labels) and return the scores on the way.

    Args:
        rate: learning rate as a function of the finished part of this epoch in [0, 1).
        print_freq: batches between two updates of the figures in the progress bar.
        limit: stop after that many batches.
        teacher: learn its probabilities (Kullback-Leibler divergence) instead of the labels.

    Raises:
        UserError: the loss is no longer finite.
    """
    network.train()
    device = next(network.parameters()).device
    meter = Meter(device)
    bar = progress_bar(batches, name, limit)
    for step, (images, labels) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / len(batches))
        try:
            with autocast(device, amp):
                logits = network(images)
        except ValueError as error:  # no positive weight left, or a single image for BN
            raise UserError(f"{error} (batch {step} of {name}): lower --lr, or raise --batch-size") from error
        loss = F.cross_entropy(logits.float(), labels) if teacher is None else divergence(logits, teacher, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meter.update(logits.detach(), labels)
        if step % print_freq == 0:
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} at batch {step} of {name}: lower --lr, or resume an earlier checkpoint")
            bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{rate(step / len(batches)):.2g}")
    scores = meter.scores()
    if not math.isfinite(scores.loss):
        raise UserError(f"the loss is {scores.loss} after {name}: lower --lr, or resume an earlier checkpoint")
    return scores


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
