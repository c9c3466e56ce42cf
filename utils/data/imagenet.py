"""ImageNet: image files split over processes, and one loader over two decoders, NVIDIA DALI and torchvision."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from ..distributed.processes import Place
from ..errors import UserError
from .image_files import MEAN, STD, Decoding, ImageFiles, damage

LOADERS = ("dali", "torchvision")


class ImageLoader:
    """Batches of normalised images [B, 3, 224, 224] float32 (channels last) and labels [B] on the device.

    A process takes every world-th image of an order that is a function of seed and epoch. For training, all processes
    take equally many (the order goes round where it does not divide); otherwise each image comes exactly once. Crops
    and flips are a function of seed, epoch and process, so that a run goes on after an interruption as if unbroken.

    Args:
        files: one split.
        batch_size: of this process; the last batch may be smaller, a last training batch of one image is left out.
        augment: random resized crop, flip and shuffle; without it shorter side 256, centre crop, in stored order.
        decoder: "dali" or "torchvision".
        workers: threads (DALI) or processes (torchvision) that decode.
        decode_on_cpu: DALI decodes on the CPU also where there is a GPU.
        limit: use only that many images (a fixed, evenly spaced subset).
        normalisation: mean and standard deviation of each channel on the scale [0, 1].

    Raises:
        UserError: fewer images than processes, or no DALI for "dali".
    """

    def __init__(self, files: ImageFiles, batch_size: int, augment: bool, decoder: str, device: torch.device | str = "cpu",
                 place: Place | None = None, seed: int = 0, workers: int = 4, decode_on_cpu: bool = False, limit: int | None = None,
                 channels_last: bool = True, normalisation: tuple[tuple[float, ...], ...] = (MEAN, STD)):
        if limit is not None and limit < len(files):
            files = files.subset(torch.linspace(0, len(files) - 1, limit).long().tolist())
        self.files, self.batch_size, self.augment, self.device = files, batch_size, augment, torch.device(device)
        self.place, self.seed, self.epoch, self.workers, self.decode_on_cpu = place or Place(), seed, 0, workers, decode_on_cpu
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.decode = decoder_named(decoder)
        if len(files) < self.place.world:
            raise UserError(f"{len(files)} images are too few for {self.place.world} processes: start fewer")
        self.mean, self.std = (torch.tensor(values, device=self.device) * 255 for values in normalisation)

    @property
    def total(self) -> int:
        """Return how many images there are, for all processes."""
        return len(self.files)

    @property
    def count(self) -> int:
        """Return how many images this process takes in an epoch."""
        rest = self.place.rank < len(self.files) % self.place.world
        count = len(self.files) // self.place.world + (bool(len(self.files) % self.place.world) if self.augment else rest)
        return count - (self.augment and count > 1 and count % self.batch_size == 1 and self.batch_size > 1)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass."""
        self.epoch = epoch

    def first(self, count: int) -> Tensor:
        """Return up to `count` images [N, 3, 224, 224] from the front of the epoch."""
        images, found = [], 0
        for batch, _ in self:
            images.append(batch)
            found += len(batch)
            if found >= count:
                break
        return torch.cat(images)[:count]

    def shard(self) -> ImageFiles:
        """Return this process's files of this epoch, in order."""
        total, world = len(self.files), self.place.world
        order = torch.arange(total)
        if self.augment:
            order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
            order = torch.cat([order, order[:-total % world]])
        return self.files.subset(order[self.place.rank::world][:self.count].tolist())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one epoch.

        Raises:
            UserError: a file that cannot be decoded; names it.
        """
        files = self.shard()
        gpu = (self.device.index or 0) if self.device.type == "cuda" else None
        how = Decoding(self.batch_size, self.augment, self.seed, self.epoch, self.place, self.workers, gpu, self.decode_on_cpu)
        batches = iter(self.decode(files, how))
        for start in range(0, len(files), self.batch_size):
            try:
                pixels, labels = next(batches)
            except Exception as error:  # decoders of foreign files raise what they like, and leave out what they like
                # They read ahead: the broken file may be of a later batch. More than that is not looked at, as it takes long.
                ahead = self.batch_size * (2 * max(self.workers, 1) + 2)
                damaged = next(filter(None, map(damage, files.paths[start:start + ahead])), None)
                if damaged is None:
                    raise
                raise UserError(damaged) from error
            images = uploaded(pixels, self.device).float().sub_(self.mean).div_(self.std)
            yield images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format), uploaded(labels, self.device).long()


Decoder = Callable[[ImageFiles, Decoding], Iterator[tuple[Tensor, Tensor]]]


def has_dali() -> bool:
    """Return whether DALI is installed."""
    return bool(find_spec("nvidia") and find_spec("nvidia.dali"))


def decoder_named(name: str) -> Decoder:
    """Return the decoder: batches of (pixels [B, 224, 224, 3] uint8, labels [B]) of some files."""
    if name == "dali":
        if not has_dali():
            raise UserError("--loader dali: DALI is not installed: pip install -r requirements-imagenet.txt, "
                            "or --loader torchvision")
        from .imagenet_dali import decode
    else:
        from .imagenet_torchvision import decode
    return decode


def uploaded(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; to a GPU a copy of its own travels, since a decoder may reuse its memory meanwhile."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
