"""Several processes, as torchrun and torch.distributed.launch start them: who is who, and what they agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=10)  # a process that waits longer for the others gives up


@dataclass(frozen=True)
class Place:
    """Where a process stands: `rank` of `world`, `local_rank` on its node. Data is split by rank, GPUs by local rank."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, local_rank: int | None = None) -> "Place":
        """Return what the launcher says; launchers of old pass the local rank as a flag."""
        read = os.environ.get
        return cls(int(read("RANK", 0)), int(read("LOCAL_RANK", local_rank or 0)), int(read("WORLD_SIZE", 1)))

    @property
    def first(self) -> bool:
        """Return whether this process writes files and prints."""
        return self.rank == 0


def restarted() -> bool:
    """Return whether torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def group(place: Place, device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the other processes, if there are any: nccl between GPUs, gloo between CPUs; print on the first one only."""
    if place.world == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    with open(os.devnull, "w") as nowhere, nullcontext() if place.first else redirect_stdout(nowhere):
        yield
    dist.destroy_process_group()  # after an error the others may wait for ever: then the process just ends


def parallel(network: nn.Module) -> nn.Module:
    """Return the network to train: itself, or wrapped so that gradients are averaged; all start from the first one's state."""
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    # BN statistics are averaged after the epoch instead, see `average_buffers_`.
    return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None, broadcast_buffers=False)


@torch.no_grad()
def average_(tensors: Iterator[Tensor]) -> None:
    """Average tensors over the processes, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def average_buffers_(network: nn.Module) -> None:
    """Average the BN statistics, which each process has gathered from its own part of the data, in place."""
    average_(buffer for buffer in network.buffers() if buffer.is_floating_point())


@torch.no_grad()
def agree_(network: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first one, in place."""
    if dist.is_initialized():
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def wait() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
