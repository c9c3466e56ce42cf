"""Several processes, as torchrun and torch.distributed.launch start them: their places, and how they agree."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import reason_of

from ..errors import LostError, UserError

TIMEOUT = 600  # seconds after which a process that waits for the others gives up
LOST = re.compile(r"Timed out|timeout|Connection (closed|reset|refused)|Broken pipe|Socket closed|failed to recv|"
                  r"NCCL (error|communicator)|ncclRemoteError|ncclSystemError|ncclInternalError|unhandled (system|cuda) error",
                  re.IGNORECASE)
T = TypeVar("T")
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Place:
    """The place of a process: `rank` of `world`, `local_rank` on its node. Data is split by rank, GPUs by local rank."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, local_rank: int | None = None) -> "Place":
        """Return the place that the launcher gives; old launchers pass the local rank as a flag.

        Raises:
            UserError: no launcher makes such an environment.
        """
        read = os.environ.get
        given = {"RANK": read("RANK", 0), "LOCAL_RANK": read("LOCAL_RANK", local_rank or 0), "WORLD_SIZE": read("WORLD_SIZE", 1)}
        try:
            place = cls(*map(int, given.values()))
        except ValueError:
            place = cls(world=0)
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if place.world > 1 and name not in os.environ]
        if missing or not 0 <= place.rank < place.world or place.local_rank < 0:
            text = ", ".join(f"{name}={value}" for name, value in given.items()) + "".join(f", no {name}" for name in missing)
            raise UserError(f"the environment says {text}: start several processes with torchrun, or unset these for a single one")
        return place

    @property
    def first(self) -> bool:
        """Return whether this process writes files and prints."""
        return self.rank == 0


def end_with_parent(_: object = None) -> None:
    """Let the system kill this process when its parent ends for any reason; only on Linux.

    Otherwise a reader that waits for a file outlives its rank, and the ranks outlive a killed launcher: they would go on
    writing into the directory of the run that has replaced them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def join(backend: str, timeout: timedelta) -> None:
    """Make the process group, apart from that of an earlier attempt of torchrun.

    Without --standalone or --rdzv-backend torchrun keeps one store over its restarts, which still holds the addresses of dead
    processes. On one node the number of the restart tells the attempts apart. On several nodes it may differ, so that they
    need --rdzv-backend=c10d, which makes a new store each time.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    store = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world)


@contextmanager
def group(place: Place, device: torch.device, timeout: float = TIMEOUT) -> Iterator[None]:
    """Join the other processes, if there are any: nccl between GPUs, gloo between CPUs; print on the first one only.

    Args:
        timeout: seconds after which a process that waits for the others gives up.

    Raises:
        LostError: the others did not come in time, or are gone, because another process failed or was silent.
    """
    if place.world == 1:
        yield
        return
    end_with_parent()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        join(backend, timedelta(seconds=timeout))
        with open(os.devnull, "w") as nowhere, nullcontext() if place.first else redirect_stdout(nowhere):
            yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        lost = LostError(f"process {place.rank} lost the others ({reason_of(error)}): one of them failed, see its error, or was "
                         f"silent for more than the {timeout:g} seconds of --timeout")
        lost.patience = min(timeout, lost.patience)
        raise lost from error
    dist.destroy_process_group()  # not after an error, where the others may wait for ever: then the process just ends


def parallel(network: nn.Module) -> nn.Module:
    """Return the network to train: itself, or wrapped so that gradients are averaged; all start from the first one's state."""
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    agree_(network)  # the buffers too: the wrapper ignores them, and they are averaged after the epoch
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # up to torch 2.11
    return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None, **{name: False})


@torch.no_grad()
def average_(tensors: Iterator[Tensor]) -> None:
    """Average tensors over the processes, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def average_buffers_(network: nn.Module) -> None:
    """Average the BN statistics, in place, which each process has gathered from its own part of the data."""
    average_(buffer for buffer in network.buffers() if buffer.is_floating_point())


@torch.no_grad()
def agree_(network: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first one, in place."""
    if dist.is_initialized():
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def once_per_node(task: Callable[[], T], place: Place) -> T:
    """Return the result of `task`: it runs on the first process of each node, then on the others, which find its files.

    Raises:
        UserError: of the task. On the other processes: LostError.
    """
    result = error = None
    for turn in (place.local_rank == 0, place.local_rank > 0):
        if turn:
            try:
                result = task()
            except UserError as caught:
                error = caught
        failed = torch.tensor(float(error is not None))
        if dist.is_initialized():
            dist.all_reduce(failed)
        if failed:
            raise error or LostError(f"process {place.rank} ends, as another one failed: see its error")
    return result


def check_everywhere(path: Path) -> None:
    """Raise UserError if only some of the processes see a file, since their nodes do not share the directory."""
    found = torch.tensor([float(path.exists())])
    average_(iter([found]))
    if 0 < found.item() < 1:
        raise UserError(f"{path} is there for some of the processes only: name a --result DIR that all nodes share")
