"""ImageNet: image files split over processes, and one loader over two decoders, NVIDIA DALI and torchvision."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from .distributed import Place
from .errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # on the scale [0, 1]
SIZE, SHORTER_SIDE = 224, 256
ASPECT, AREA = (0.8, 1.25), (0.1, 1.0)  # of the random crop
SUFFIXES = {".jpeg", ".jpg", ".png"}
LOADERS = ("dali", "torchvision")


@dataclass(frozen=True)
class ImageFiles:
    """Files and their labels; a label is the place of the file's folder among the sorted class folders."""

    paths: list[str]
    labels: list[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: list[int]) -> "ImageFiles":
        """Return the files with these indices."""
        return ImageFiles([self.paths[i] for i in indices], [self.labels[i] for i in indices], self.classes)


def list_images(folder: Path) -> ImageFiles:
    """List the images in the class folders of one split.

    Raises:
        UserError: no folder, no class folders, or one without an image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: name the directory with train/ and val/, or both, train first")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{folder} has no class folders: ImageNet's images lie in one folder per class (n01440764, ...)")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(str(file) for file in (folder / name).iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{folder / name} has no .JPEG, .jpg or .png: unpack this class again, or remove its folder")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(paths, labels, classes)


def read_splits(directories: list[Path]) -> tuple[ImageFiles, ImageFiles]:
    """Return the training and the validation images of one directory with train/ and val/, or of two.

    Raises:
        UserError: a missing or empty folder, or two splits of different classes.
    """
    folders = [directories[0] / "train", directories[0] / "val"] if len(directories) == 1 else directories
    train, val = (list_images(folder) for folder in folders)
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f"{folders[0]} and {folders[1]} have different classes, for example {odd[0]}: the labels would not fit")
    return train, val


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

    Raises:
        UserError: fewer images than processes, or no DALI for "dali".
    """

    def __init__(self, files: ImageFiles, batch_size: int, augment: bool, decoder: str, device: torch.device | str = "cpu",
                 place: Place | None = None, seed: int = 0, workers: int = 4, decode_on_cpu: bool = False, limit: int | None = None,
                 channels_last: bool = True):
        if limit is not None and limit < len(files):
            files = files.subset(torch.linspace(0, len(files) - 1, limit).long().tolist())
        self.files, self.batch_size, self.augment, self.device = files, batch_size, augment, torch.device(device)
        self.place, self.seed, self.epoch, self.workers, self.decode_on_cpu = place or Place(), seed, 0, workers, decode_on_cpu
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.decode = decoder_named(decoder)
        if len(files) < self.place.world:
            raise UserError(f"{len(files)} images are too few for {self.place.world} processes: start fewer")
        self.mean, self.std = (torch.tensor(values, device=self.device) * 255 for values in (MEAN, STD))

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
        batches = iter(self.decode(files, self))
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
            images = pixels.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
            yield images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format), labels.to(self.device).long()


Decoder = Callable[[ImageFiles, ImageLoader], Iterator[tuple[Tensor, Tensor]]]


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


def damage(path: str) -> str | None:
    """Return what is wrong with an image file; None if it decodes."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB").load()
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        return f"{path} cannot be decoded ({error}): copy it again, or remove it"
    return None
