"""Decode, crop and resize with PIL and torchvision, in worker processes, if DALI is not installed.

torchvision tries a random crop 10 times, DALI 100 times, before it takes the middle; for very wide images that matters.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..distributed.processes import end_with_parent
from .image_files import AREA, ASPECT, SHORTER_SIDE, SIZE, Decoding, ImageFiles, eight_bit


def centre(image: Image.Image) -> Image.Image:
    """Resize to shorter side 256 and crop 224x224 in the middle; halves round up, as in DALI, or crops differ by a pixel.

    PIL's bilinear filter is antialiased; it is DALI's triangular one.
    """
    width, height = (math.floor(side * SHORTER_SIDE / min(image.size) + 0.5) for side in image.size)
    left, top = (math.floor((side - SIZE + 1) / 2) for side in (width, height))
    return functional.crop(functional.resize(image, [height, width]), top, left, SIZE, SIZE)


class Images(Dataset):
    """(pixels [224, 224, 3] uint8, label) of files; the random numbers of an image depend on `seed` and its index alone."""

    def __init__(self, files: ImageFiles, augment: bool, seed: int):
        self.files, self.seed = files, seed
        self.transform = v2.Compose([v2.RandomResizedCrop(SIZE, AREA, ASPECT), v2.RandomHorizontalFlip()]) if augment else centre

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.files.paths[index]) as image, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + index)
            pixels = np.array(self.transform(eight_bit(image).convert("RGB")))
        return torch.from_numpy(pixels), self.files.labels[index]


def decode(files: ImageFiles, how: Decoding) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pixels [B, 224, 224, 3] uint8, labels [B]) of one epoch, in the order of the files."""
    yield from DataLoader(Images(files, how.augment, how.stream * 2**22 % 2**62), how.batch_size, num_workers=how.workers,
                          pin_memory=how.gpu is not None, worker_init_fn=end_with_parent)
