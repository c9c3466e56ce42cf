"""CIFAR-10, CIFAR-100, digits and a folder of images as uint8 tensors, and a loader that augments whole batches on the device."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .folder import mean_and_std, read_folder

PADDING = 4
SIZE = 32  # of CIFAR's images
SUMS = "SHA256SUMS"


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


def read_sums(folder: Path) -> dict[str, str]:
    """Return {file name: SHA-256} from a folder's SHA256SUMS, as `sha256sum *.bin > SHA256SUMS` writes it; empty without one."""
    path = folder / SUMS
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
        return {name.lstrip("*"): digest for digest, name in (line.split() for line in lines)}
    except ValueError as error:
        raise UserError(f"{path} is no list of checksums: write it again, sha256sum *.bin > {SUMS}, or remove it") from error


def read_binary(files: list[Path], label_bytes: int, classes: int, most: int) -> tuple[Tensor, Tensor]:
    """Read the official binary version: records of `label_bytes` labels (the last one counts) and 3072 pixels.

    The format has no checksums, so that altered pixels can be told only where SHA256SUMS lies beside the files.

    Args:
        most: records of a file of the official set.

    Returns:
        images [N, 3, 32, 32] uint8, labels [N] int64.

    Raises:
        UserError: a file is missing, no whole number of records, empty, larger than the official one, has a label outside the
            classes, or differs from SHA256SUMS.
    """
    images, labels = [], []
    sums = read_sums(files[0].parent)
    record = label_bytes + 3 * SIZE * SIZE
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing: unpack the official archive again")
        size = file.stat().st_size
        if size == 0 or size % record or size > most * record:
            raise UserError(f"{file} has {size} bytes, which is not 1 to {most} times {record}: it is truncated or no CIFAR file")
        raw = np.fromfile(file, np.uint8)
        if sums and sums.get(file.name) != hashlib.sha256(raw).hexdigest():
            raise UserError(f"{file} differs from {SUMS} beside it: it is damaged, unpack it again, or mend the list")
        rows = raw.reshape(-1, record)
        labels.append(rows[:, label_bytes - 1])
        images.append(rows[:, label_bytes:].reshape(-1, 3, SIZE, SIZE))
        if labels[-1].max() >= classes:
            raise UserError(f"{file} has label {labels[-1].max()}, but {classes} classes: it is damaged or of another data set")
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)).long()


def read_cifar(root: Path, classes: int, train: bool) -> tuple[Tensor, Tensor]:
    """Read CIFAR-10 or CIFAR-100 from `root`: the binary version, else torchvision's (downloaded if need be)."""
    if classes == 10:
        folder, names = root / "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        label_bytes, most = 1, 10_000
    else:
        folder, names = root / "cifar-100-binary", ["train.bin" if train else "test.bin"]
        label_bytes, most = 2, 50_000 if train else 10_000
    if folder.is_dir():
        return read_binary([folder / name for name in names], label_bytes, classes, most)
    return read_torchvision(root, classes, train)


def read_torchvision(root: Path, classes: int, train: bool) -> tuple[Tensor, Tensor]:
    """Read the python version through torchvision, which checks its checksums before it unpickles, or download it."""
    from torchvision import datasets

    kind, folder = (datasets.CIFAR10, "cifar-10-batches-py") if classes == 10 else (datasets.CIFAR100, "cifar-100-python")
    try:
        source = kind(str(root), train=train, download=not (root / folder).is_dir())
    except (OSError, RuntimeError) as error:
        if (root / folder).is_dir():
            raise UserError(f"{root / folder} is not the official data set ({error}): unpack the archive again") from error
        binary = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
        raise UserError(f"no CIFAR-{classes} in {root} and no download ({error}): put the official {binary}/ or {folder}/ "
                        f"there, or name its parent with --data") from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(source.targets)


def read_digits(train: bool) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 8x8 digits as grey 3x32x32 images: every fifth one is a test image (360 of 1,797)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 != 0) == train
    pixels = torch.from_numpy(digits.images[chosen] * (255 / 16)).round().to(torch.uint8)
    images = pixels[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(digits.target[chosen]).long()


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
