"""CIFAR-10, CIFAR-100, digits and a folder of images as uint8 tensors, and a loader that augments whole batches on the device."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .cifar_files import read_cifar, read_digits
from .folder import mean_and_std, read_folder

PADDING = 4


@dataclass(frozen=True)
class ImageSet:
    """Images [N, 3, 32, 32] uint8, labels [N] int64; channel means and standard deviations on the scale [0, 1]."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flips: bool

    def __len__(self) -> int:
        return len(self.labels)


def load_images(dataset: str, root: str | Path, train: bool, size: int = 32) -> ImageSet:
    """Load the train or test split of cifar10, cifar100, digits or a folder, whose images are of so many rows and columns.

    Raises:
        UserError: the data is not there, cannot be downloaded, or is damaged.
    """
    if dataset == "digits":
        return ImageSet(*read_digits(train), mean=(0.305,) * 3, std=(0.376,) * 3, flips=False)
    if dataset == "folder":
        images, labels = read_folder(Path(root), train, size)
        return ImageSet(images, labels, *mean_and_std(images), flips=True)
    images, labels = read_cifar(Path(root), 10 if dataset == "cifar10" else 100, train)
    official = 50_000 if train else 10_000
    if len(labels) != official:
        print(f"note: {root} has {len(labels)} of the {official} {'training' if train else 'test'} images", file=sys.stderr)
    return ImageSet(images, labels, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), flips=True)


class TensorLoader:
    """Batches of normalised images [B, 3, 32, 32] float32 (channels last) and labels [B], made on the device.

    The order and the augmentation (random crop of the image padded by 4 black pixels, horizontal flip) are a function
    of the seed and the epoch alone, so that a run repeats, and goes on after an interruption, bit for bit.

    Args:
        images: the set; it is moved to the device once, as uint8.
        batch_size: the last batch may be smaller.
        augment: crop, flip and shuffle; without it, images come in their stored order.
        seed: of order and augmentation.
        limit: use only that many images (a fixed, evenly spaced subset).
        channels_last: memory format of the batches.
    """

    def __init__(self, images: ImageSet, batch_size: int, augment: bool, seed: int = 0,
                 device: torch.device | str = "cpu", limit: int | None = None, channels_last: bool = True):
        self.batch_size, self.augment, self.seed, self.epoch = batch_size, augment, seed, 0
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.flips = images.flips
        kept = torch.arange(len(images))
        if limit is not None and limit < len(images):
            kept = torch.linspace(0, len(images) - 1, limit).long()
        # [N, H, W, 3]: a crop copies whole pixels, and its permutation to [N, 3, H, W] is channels last.
        pixels = images.images[kept].to(device).permute(0, 2, 3, 1)
        self.pixels = (F.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING)) if augment else pixels).contiguous()
        self.labels = images.labels[kept].to(device)
        self.mean = torch.tensor(images.mean, device=device) * 255
        self.inverse_std = 1 / (torch.tensor(images.std, device=device) * 255)

    @property
    def count(self) -> int:
        """Return how many images this process takes: all."""
        return len(self.labels)

    @property
    def total(self) -> int:
        """Return how many images there are."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Return where the batches are."""
        return self.labels.device

    def __len__(self) -> int:
        """Return the number of batches."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > (1 if self.augment and full else 0))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass."""
        self.epoch = epoch

    def first(self, count: int) -> Tensor:
        """Return up to `count` images [N, 3, 32, 32] from the front of the epoch."""
        images = []
        for batch, _ in self:
            images.append(batch)
            if sum(map(len, images)) >= count:
                break
        return torch.cat(images)[:count]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one epoch."""
        sizes, plan = self.plan()
        for order, *crop in zip(*(part.split(sizes) for part in plan), strict=True):
            pixels = self.crops(order, *crop) if self.augment else self.pixels[order]
            images = pixels.float().sub_(self.mean).mul_(self.inverse_std)
            yield images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format), self.labels[order]

    def plan(self) -> tuple[list[int], Tensor]:
        """Return the batches' sizes and, on the device, the epoch's order or [order, top, left, flip], [.., N] int64.

        It is drawn batch by batch and moved at once: a GPU would wait for each smaller piece.
        """
        count = len(self.labels)
        sizes = [self.batch_size] * (count // self.batch_size) + [count % self.batch_size] * (count % self.batch_size > 0)
        if not self.augment:
            return sizes, torch.arange(count, device=self.device)[None]
        if self.batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [sum(sizes[-2:])]  # BN cannot train on a single image
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(count, generator=generator)[None]
        drawn = [torch.cat((torch.randint(2 * PADDING + 1, (2, size), generator=generator),
                            torch.randint(2, (1, size), generator=generator) * int(self.flips))) for size in sizes]
        return sizes, torch.cat((order, torch.cat(drawn, 1))).to(self.device)

    def crops(self, order: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Return images [B, H, W, 3] uint8 by their numbers [B], cropped at `top` and `left`, mirrored where `flip` is 1."""
        down, across = (torch.arange(side - 2 * PADDING, device=self.device) for side in self.pixels.shape[1:3])
        rows = top[:, None] + down
        columns = left[:, None] + torch.where(flip[:, None] > 0, across.flip(0), across)
        return self.pixels[order[:, None, None], rows[:, :, None], columns[:, None, :]]
