"""Accuracy and loss as sums over samples, so that each sample counts once on any number of processes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a pass: top-1 and top-5 in percent, mean cross-entropy in nats, number of samples."""

    top1: float
    top5: float
    loss: float
    count: int


class Meter:
    """Running sums [top-1 hits, top-5 hits, loss, samples], kept on the device without synchronisation."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, classes], labels [B]."""
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        self.sums[:3] += torch.stack([hits[:, 0].sum(), hits.sum(), loss])
        self.sums[3] += len(labels)

    def begin(self) -> None:
        """Forget what was added."""
        self.sums.zero_()

    def scores(self) -> Scores:
        """Return the scores over all samples of all processes."""
        sums = self.sums.clone()
        if dist.is_initialized():
            dist.all_reduce(sums)
        top1, top5, loss, count = sums.tolist()
        return Scores(100 * top1 / max(count, 1), 100 * top5 / max(count, 1), loss / max(count, 1), int(count))


class ReadoutMeter:
    """A meter for each number T' = 1..T of steps after which a spiking network is read out."""

    def __init__(self, time_steps: int, device: torch.device | str = "cpu"):
        self.meters = [Meter(device) for _ in range(time_steps)]

    def update(self, readouts: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [T, B, classes], labels [B]."""
        for meter, logits in zip(self.meters, readouts, strict=True):
            meter.update(logits, labels)

    def scores(self) -> list[Scores]:
        """Return the scores after T' = 1..T steps."""
        return [meter.scores() for meter in self.meters]


def log_line(epoch: int, rate: float, train: Scores, test: Scores, seconds: float) -> dict[str, Any]:
    """Return an epoch's line of the log; accuracies in percent, loss in nats."""
    parts = {f"{name}_{key}": round(value, 6) for name, scores in (("train", train), ("test", test))
             for key, value in asdict(scores).items() if key != "count"}
    return {"epoch": epoch, "lr": rate, **parts, "seconds": round(seconds, 1)}
