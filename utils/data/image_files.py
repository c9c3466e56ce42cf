"""ImageNet's image files: lists of them, damage in them, and the settings of every decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed.processes import Place
from ..errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # on the scale [0, 1]
SIZE, SHORTER_SIDE = 224, 256
ASPECT, AREA = (0.8, 1.25), (0.1, 1.0)  # of the random crop
SUFFIXES = {".jpeg", ".jpg", ".png"}
OTHERS = {".avif", ".bmp", ".gif", ".heic", ".jfif", ".tif", ".tiff", ".webp"}  # images that not every decoder reads


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
        other = "val" if folder.name == "train" else folder.name
        raise UserError(f"{folder} does not exist: name the directory with train/ and {other}/, or both, train first")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{folder} has no class folders: images lie in one folder per class (ImageNet's: n01440764, ...)")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = {str(file): file.suffix.lower() for file in (folder / name).iterdir()}
        found = sorted(file for file, suffix in files.items() if suffix in SUFFIXES)
        others = sorted(file for file, suffix in files.items() if suffix in OTHERS)
        if others:
            raise UserError(f"{others[0]} is no .JPEG, .jpg or .png: convert the {len(others)} such files of its folder, or remove "
                            "them")
        if not found:
            raise UserError(f"{folder / name} has no .JPEG, .jpg or .png: unpack this class again, or remove its folder")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(paths, labels, classes)


def read_splits(directories: Sequence[Path]) -> tuple[ImageFiles, ImageFiles]:
    """Return the training and the validation images of one directory with train/ and val/, or of two.

    Raises:
        UserError: a missing or empty folder, or two splits of different classes.
    """
    folders = [directories[0] / "train", directories[0] / "val"] if len(directories) == 1 else directories
    train, val = (list_images(folder) for folder in folders)
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))[0]
        lacks = folders[odd in train.classes]
        raise UserError(f"{folders[0]} and {folders[1]} have different classes, {lacks} lacks {odd} for example: the labels would "
                        "not fit")
    return train, val


@dataclass(frozen=True)
class Decoding:
    """How one process decodes one epoch.

    Attributes:
        batch_size: images of a batch; the last one may be smaller.
        augment: random resized crop and flip; without it the centre.
        seed: of the whole run; with `epoch` and `place` it gives the augmentation.
        workers: threads (DALI) or processes (torchvision) that decode.
        gpu: index of the GPU that the pixels go to; None without one.
        on_cpu: decode on the CPU even if there is a GPU.
    """

    batch_size: int
    augment: bool
    seed: int
    epoch: int
    place: Place
    workers: int
    gpu: int | None
    on_cpu: bool

    @property
    def stream(self) -> int:
        """Return a number of its own for each seed, epoch and process."""
        return (self.seed * 1_000_003 + self.epoch) * self.place.world + self.place.rank


def damage(path: str) -> str | None:
    """Return the damage of an image file as a message; None if it decodes."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB").load()
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        return f"{path} cannot be decoded ({error}): copy it again, or remove it"
    return None


def eight_bit(image: Any) -> Any:
    """Return an image of PIL, a grey one of 16 bits with the upper 8 of them, where PIL would cut off all values above 255."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
