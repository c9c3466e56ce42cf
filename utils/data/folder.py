"""The user's own images: train/ and test/ with a folder per class, PNG or JPEG."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .image_files import damage, read_splits


def class_names(root: Path) -> list[str]:
    """Return the classes, which are the same in both splits; a label is the place of a class among them.

    Raises:
        UserError: a missing or empty folder, or a class that one split lacks; names it.
    """
    return read_splits([root / "train", root / "test"])[0].classes


def read_folder(root: Path, train: bool, size: int) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, size, size] uint8 and labels [N] int64; what is of another size is resized and cropped, and said so.

    Raises:
        UserError: see `class_names`; a file that cannot be decoded, by name.
    """
    files = read_splits([root / "train", root / "test"])[not train]
    images, others = [], 0
    for path in files.paths:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # PIL's decoders raise what they like
            raise UserError(damage(path) or f"{path} cannot be read ({error}): copy it again, or remove it") from error
        others += image.size != (size, size)
        images.append(torch.from_numpy(np.array(centre(image, size))))
    if others:
        print(f"note: {others} of {len(images)} images of {root} are not {size}x{size}: their shorter side is resized to that, and "
              "the middle cropped; --size says another size", file=sys.stderr)
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.labels)


def centre(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`, with a filter that does not alias, and crop the middle."""
    if image.size == (size, size):
        return image
    width, height = (max(size, round(side * size / min(image.size))) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images [N, 3, H, W] uint8, on the scale [0, 1]."""
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).clamp(min=1 / 255).tolist())
