"""The common part of the loaders: how the images of a split come in batches."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor


class Batches:
    """Batches of normalised images [B, 3, H, W] float32 and labels [B] on the device.

    Order and augmentation are a function of the seed and the epoch (and the process) alone, so that a run repeats, and goes on
    after an interruption, bit for bit. The last batch may be smaller; but BN cannot train on a single image, so that a single
    last training image joins the batch before it.

    Args:
        batch_size: of this process.
        augment: for training: shuffled, cropped and flipped; without it images come in their stored order.
        seed: of order and augmentation.
        normalisation: mean and standard deviation of each channel on the scale [0, 1].
        channels_last: memory format of the batches.

    Attributes:
        count: how many images this process takes in an epoch.
        total: how many there are, for all processes.
        size: [3, H, W] of an image.
    """

    count: int
    total: int
    size: tuple[int, int, int]

    def __init__(self, batch_size: int, augment: bool, seed: int, device: torch.device | str,
                 normalisation: tuple[tuple[float, ...], ...], channels_last: bool):
        self.batch_size, self.augment, self.seed, self.epoch, self.device = batch_size, augment, seed, 0, torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, std = (torch.tensor(values, device=device) * 255 for values in normalisation)
        self.inverse_std = 1 / std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one epoch."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.sizes())

    def sizes(self) -> list[int]:
        """Return the size of each batch of an epoch."""
        full, rest = divmod(self.count, self.batch_size)
        if self.augment and full and rest == 1:
            return [self.batch_size] * (full - 1) + [self.batch_size + 1]
        return [self.batch_size] * full + [rest] * (rest > 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass."""
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Return the random numbers of this epoch, the same in all processes."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

    def first(self, count: int) -> Tensor:
        """Return up to `count` images [N, 3, H, W] from the start of the epoch."""
        return torch.cat([images for images, _ in islice(self, -(-count // self.batch_size))])[:count]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, H, W, 3] uint8 on the device to images [B, 3, H, W] float32."""
        images = pixels.float().sub_(self.mean).mul_(self.inverse_std)
        return images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


def spread(count: int, limit: int | None) -> Tensor:
    """Return the numbers of up to `limit` of `count` images, evenly spaced; None: of all."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.linspace(0, count - 1, limit).long()
