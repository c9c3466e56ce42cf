"""Decode, crop and resize with NVIDIA DALI: on the GPU, or as a whole on the CPU."""

from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy
from torch import Tensor

from .image_files import AREA, ASPECT, SHORTER_SIDE, SIZE, Decoding, ImageFiles

READER = "reader"
ATTEMPTS = 100


@pipeline_def
def graph(files: ImageFiles, augment: bool, decoder: str) -> tuple[Any, Any]:
    """Return pixels [224, 224, 3] uint8 and label; `decoder` is "mixed", which ends on the GPU, or "cpu".

    Orientation in EXIF data is ignored, as by PIL: pixels are taken as they are stored.
    """
    encoded, label = fn.readers.file(files=files.paths, labels=files.labels, name=READER)
    if augment:
        pixels = fn.decoders.image_random_crop(encoded, device=decoder, output_type=types.RGB, random_aspect_ratio=ASPECT,
                                               random_area=AREA, num_attempts=ATTEMPTS, adjust_orientation=False)
        pixels = fn.resize(pixels, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_TRIANGULAR)
        flip = fn.random.coin_flip(probability=0.5)
    else:
        pixels = fn.decoders.image(encoded, device=decoder, output_type=types.RGB, adjust_orientation=False)
        pixels = fn.resize(pixels, resize_shorter=SHORTER_SIDE, interp_type=types.INTERP_TRIANGULAR)
        flip = 0
    return fn.crop_mirror_normalize(pixels, crop=(SIZE, SIZE), mirror=flip, dtype=types.UINT8, output_layout="HWC"), label


def decode(files: ImageFiles, how: Decoding) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pixels [B, 224, 224, 3] uint8, labels [B]) of one epoch, in the order of the files."""
    # Each epoch has its own pipeline, so that the augmentation depends on the seed alone, not on earlier epochs.
    decoder = "cpu" if how.gpu is None or how.on_cpu else "mixed"
    pipeline = graph(files, how.augment, decoder, batch_size=min(how.batch_size, len(files)),
                     num_threads=max(1, how.workers), device_id=how.gpu, seed=how.stream % 2**31)
    batches = DALIGenericIterator([pipeline], ["pixels", "labels"], reader_name=READER, last_batch_policy=LastBatchPolicy.PARTIAL)
    for (batch,) in batches:
        yield batch["pixels"], batch["labels"].flatten()
