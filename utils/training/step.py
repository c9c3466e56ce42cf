"""One training step: forward, loss, backward, update and scores, without waiting for the device; compiled and captured on request.

A GPU works later than the program that feeds it. To read a number from it, the program must wait until all work is done, and
then the GPU is idle until new work comes. So a step reads nothing: the device notes whether a batch was sound and skips the
update of an unsound one, and `Step.check` reads the note now and then.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models import reason_of
from quant import Compiled, fault, scalars

from ..errors import LostError, UserError
from .guards import Note, first_fault, inner, is_sound
from .metrics import Meter

WARM_UP = 3  # steps before the capture: libraries choose their kernels and the optimizer makes its state


def autocast(device: torch.device, enabled: bool, cache: bool = True) -> AbstractContextManager:
    """Return a bfloat16 autocast context for the device; quantizers compute in float32 within it.

    The cache of cast weights must be off if an optimizer steps inside the context.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)


class Step:
    """Trains a network on one batch after another.

    Args:
        network: in training mode; or a wrapper that averages its gradients over processes.
        optimizer: fused SGD, which can skip an update on the device.
        amp: bfloat16 where it is safe.
        teacher: learn its probabilities (Kullback-Leibler divergence) instead of the labels.
        smoothing: of the labels, 0 to 1.
        average: follows the network as an exponential moving average, with `decay`.
        compile: compile the step for the shape of the first batch; on a GPU of a single process it is replayed as a CUDA graph.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.SGD, amp: bool = False, teacher: nn.Module | None = None,
                 smoothing: float = 0.0, average: nn.Module | None = None, decay: float = 0.0, compile: bool = False):
        self.network, self.optimizer, self.amp, self.teacher, self.smoothing = network, optimizer, amp, teacher, smoothing
        self.averaged = [] if average is None else pairs(average, inner(network))
        self.decay = decay
        self.positive, self.device = list(scalars(network).values()), next(network.parameters()).device
        self.meter = Meter(self.device)
        self.note = Note(self.device)
        self.compiled = Compiled(self.loss, dynamic=False, whole=not dist.is_initialized()) if compile else None
        self.shape: torch.Size | None = None  # of the batches that are compiled for
        self.captures = compile and self.device.type == "cuda" and not dist.is_initialized()
        self.captured: Captured | None = None
        self.warm = 0
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, images: Tensor, labels: Tensor, rate: float, group: int = 1, ends: bool = True) -> None:
        """Train on images [B, C, H, W] and labels [B] with a learning rate.

        Args:
            group: batches whose mean gradient makes one update.
            ends: whether this one is the last of its group.
        """
        self.shape = self.shape or images.shape
        regular = group == 1 and images.shape == self.shape
        self._set_rate(rate)
        if self.captured is not None and regular:
            self.captured(images, labels)
            return
        if self.captures and regular and self.warm == WARM_UP:
            self._capture(images, labels)
            self(images, labels, rate)
            return
        self.warm += regular
        with side_stream(self.device) if self.captures else nullcontext():
            self._run(images, labels, group, ends)

    def begin(self) -> None:
        """Count batches and scores from 0 again: a new epoch."""
        self.network.train()
        self.meter.begin()
        self.note.begin()

    def check(self, name: str) -> float:
        """Wait for the device and check that all batches so far were sound; return the last one's loss.

        Raises:
            UserError: a batch was not; names it, and the layer in which it failed.
            LostError: a batch of another process was not.
        """
        unsound, own, batch, loss = self.note.read()
        if not unsound:
            return loss
        if not own:
            raise LostError("this process ends, as the loss of another one is NaN or infinite: see its error")
        reason = fault(inner(self.network), statistics=False)
        reason = reason or f"the loss is {loss:g}: {first_fault(self.network, self.note.images)}"
        raise UserError(f"{reason} (batch {int(batch)} of {name}): lower --lr, or raise --batch-size; --resume takes up the last "
                        "checkpoint")

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, classes], the loss, and whether it can be trusted."""
        with autocast(images.device, self.amp):
            logits = self.network(images)
        if self.teacher is None:
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        else:
            with torch.no_grad(), autocast(images.device, self.amp):
                target = self.teacher(images)
            loss = divergence(logits, target)
        return logits, loss, is_sound(loss, self.positive)

    def _run(self, images: Tensor, labels: Tensor, group: int = 1, ends: bool = True) -> None:
        """Launch one step."""
        with nullcontext() if ends or not hasattr(self.network, "no_sync") else self.network.no_sync():
            forward = self.loss if self.compiled is None or images.shape != self.shape else self.compiled
            logits, loss, found_sound = forward(images, labels)
            (loss / group).backward()
        self.note.take(images, loss.detach(), found_sound)
        self.meter.update(logits.detach(), labels)
        if ends:
            self.optimizer.found_inf = self.note.unsound  # fused optimizers skip their update where it is 1
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the average follow the network."""
        if self.averaged:
            averages, values = zip(*self.averaged, strict=True)
            torch._foreach_lerp_(averages, values, 1 - self.decay)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            own = rate * group.get("factor", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(own)
            else:
                group["lr"] = own

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Record the step as a CUDA graph; if that fails, go on without."""
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=self.device, dtype=torch.float32)
        try:
            self.captured = Captured(self._run, images, labels)
        except RuntimeError as error:
            self.captures = False
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"].item()
            warnings.warn(f"the step is not captured as a CUDA graph: {reason_of(error)}", stacklevel=2)


class Captured:
    """A step as a CUDA graph: one launch for all of its kernels, on copies of the images and labels at fixed addresses."""

    def __init__(self, run: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor):
        self.images, self.labels, self.graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            run(self.images, self.labels)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Replay the step."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run the body on a stream of its own, as required before a capture."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)), the mean over the batch, in nats; logits and target [B, classes]."""
    target, logits = (F.log_softmax(x.float(), dim=1) for x in (target, logits))
    return F.kl_div(logits, target, reduction="batchmean", log_target=True)


def pairs(average: nn.Module, network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of floating-point parameters and buffers: of an average, and of the network; shared ones once."""
    averages, values = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (average, network))
    return [(tensor, values[name]) for name, tensor in averages.items() if tensor.is_floating_point()]
