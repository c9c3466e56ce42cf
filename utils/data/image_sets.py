"""CIFAR-10, CIFAR-100, digits and folders of images as they are stored: read, checked, or downloaded."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .image_files import ImageFiles, damage, eight_bit, read_splits

SIZE = 32
SUMS = "SHA256SUMS"


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

    The format has no checksums, so that altered pixels are found only if SHA256SUMS lies beside the files.

    Args:
        most: records in a file of the official set.

    Returns:
        images [N, 3, 32, 32] uint8, labels [N] int64.

    Raises:
        UserError: a file is missing, empty, not a whole number of records, larger than the official one, has a label outside the
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
    """Read CIFAR-10 or CIFAR-100 from `root`: the binary version, else torchvision's (downloaded if needed)."""
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


def folder_splits(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Return the training and the test images of a folder; a label is the index of a class, the same in both.

    Raises:
        UserError: a missing or empty folder, or a class that one split lacks; names it.
    """
    folders = [root / "train", root / "test"]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: --data DIR has train/ and test/, a folder per class in each")
    return read_splits(folders)


def read_folder(root: Path, train: bool, size: int) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, size, size] uint8 and labels [N] int64; images of another size are resized and cropped, with a note.

    Raises:
        UserError: see `folder_splits`; a file that cannot be decoded, by name.
    """
    files = folder_splits(root)[not train]
    images, others = [], 0
    for path in files.paths:
        try:
            with Image.open(path) as file:
                image = eight_bit(file).convert("RGB")
        except Exception as error:  # PIL's decoders raise anything
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
