"""CIFAR-10, CIFAR-100, digits and a folder of images as uint8 tensors, and a loader that augments whole batches on the device."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batches, spread
from .image_sets import mean_and_std, read_cifar, read_digits, read_folder

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
    """Load the train or test split of cifar10, cifar100, digits or a folder; `size`: rows and columns of a folder's images.

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


class TensorLoader(Batches):
    """Batches of images in memory, augmented on the device: a crop of the image padded by 4 black pixels, a flip.

    Args:
        images: the set; it is moved to the device once, as uint8.
        limit: use only that many images (a fixed, evenly spaced subset).
        others: see `Batches`.
    """

    def __init__(self, images: ImageSet, batch_size: int, augment: bool, seed: int = 0,
                 device: torch.device | str = "cpu", limit: int | None = None, channels_last: bool = True):
        super().__init__(batch_size, augment, seed, device, (images.mean, images.std), channels_last)
        self.flips = images.flips
        kept = spread(len(images), limit)
        # [N, H, W, 3]: a crop copies whole pixels, and its permutation to [N, 3, H, W] is channels last.
        pixels = images.images[kept].to(device).permute(0, 2, 3, 1)
        self.pixels = (F.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING)) if augment else pixels).contiguous()
        self.labels = images.labels[kept].to(device)
        self.count = self.total = len(kept)
        self.size = tuple(images.images.shape[1:])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one epoch."""
        sizes, plan = self.sizes(), self.plan()
        for order, *crop in zip(*(part.split(sizes) for part in plan), strict=True):
            yield self.normalised(self.crops(order, *crop) if self.augment else self.pixels[order]), self.labels[order]

    def plan(self) -> Tensor:
        """Return, on the device, the epoch's order or [order, top, left, flip], [.., N] int64.

        It is drawn batch by batch and moved as a whole, since a GPU would wait for each smaller piece.
        """
        if not self.augment:
            return torch.arange(self.count, device=self.device)[None]
        generator = self.generator()
        order = torch.randperm(self.count, generator=generator)[None]
        drawn = [torch.cat((torch.randint(2 * PADDING + 1, (2, size), generator=generator),
                            torch.randint(2, (1, size), generator=generator) * int(self.flips))) for size in self.sizes()]
        return torch.cat((order, torch.cat(drawn, 1))).to(self.device)

    def crops(self, order: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Return images [B, H, W, 3] uint8 by their numbers [B], cropped at `top` and `left`, mirrored where `flip` is 1."""
        down, across = (torch.arange(side - 2 * PADDING, device=self.device) for side in self.pixels.shape[1:3])
        rows = top[:, None] + down
        columns = left[:, None] + torch.where(flip[:, None] > 0, across.flip(0), across)
        return self.pixels[order[:, None, None], rows[:, :, None], columns[:, None, :]]
