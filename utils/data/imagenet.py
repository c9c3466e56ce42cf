"""ImageNet: image files split over processes, and one loader over two decoders, NVIDIA DALI and torchvision."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from ..distributed.processes import Place
from ..errors import UserError
from .batches import Batches, spread
from .image_files import MEAN, SIZE, STD, Decoding, ImageFiles, damage

LOADERS = ("dali", "torchvision")


class ImageLoader(Batches):
    """Batches of images [B, 3, 224, 224] that are decoded from files as they are needed.

    A process takes every world-th image of an order that is the same in all. For training, all processes take equally many
    (if needed, the order starts again); otherwise each image comes exactly once.

    Args:
        files: one split.
        augment: random resized crop, flip and shuffle; without it shorter side 256, centre crop, in stored order.
        decoder: "dali" or "torchvision".
        workers: threads (DALI) or processes (torchvision) that decode.
        decode_on_cpu: DALI decodes on the CPU even if there is a GPU.
        limit: use only that many images (a fixed, evenly spaced subset).
        others: see `Batches`.

    Raises:
        UserError: fewer images than processes, or no DALI for "dali".
    """

    size = (3, SIZE, SIZE)

    def __init__(self, files: ImageFiles, batch_size: int, augment: bool, decoder: str, device: torch.device | str = "cpu",
                 place: Place | None = None, seed: int = 0, workers: int = 4, decode_on_cpu: bool = False, limit: int | None = None,
                 channels_last: bool = True, normalisation: tuple[tuple[float, ...], ...] = (MEAN, STD)):
        super().__init__(batch_size, augment, seed, device, normalisation, channels_last)
        self.files = files.subset(spread(len(files), limit).tolist())
        self.place, self.workers, self.decode_on_cpu = place or Place(), workers, decode_on_cpu
        self.decode = decoder_named(decoder)
        self.total, world = len(self.files), self.place.world
        if self.total < world:
            raise UserError(f"{self.total} images are too few for {world} processes: start fewer")
        self.count = -(-self.total // world) if augment else len(range(self.place.rank, self.total, world))

    def shard(self) -> ImageFiles:
        """Return this process's files of this epoch, in order."""
        order = torch.arange(self.total)
        if self.augment:
            order = torch.randperm(self.total, generator=self.generator())
            order = torch.cat([order, order[:-self.total % self.place.world]])
        return self.files.subset(order[self.place.rank::self.place.world].tolist())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one epoch.

        Raises:
            UserError: a file that cannot be decoded; names it.
        """
        files, start = self.shard(), 0
        gpu = (self.device.index or 0) if self.device.type == "cuda" else None
        how = Decoding(self.batch_size, self.augment, self.seed, self.epoch, self.place, self.workers, gpu, self.decode_on_cpu)
        batches = iter(self.decode(files, how))
        for size in self.sizes():
            try:
                pixels, labels = next(batches)
                if len(labels) < size:
                    pixels, labels = map(torch.cat, zip((pixels, labels), next(batches), strict=True))
            except Exception as error:  # decoders raise anything, or leave images out
                # They read ahead: the broken file may be of a later batch. To check all files would take long.
                ahead = self.batch_size * (2 * max(self.workers, 1) + 2)
                damaged = next(filter(None, map(damage, files.paths[start:start + ahead])), None)
                if damaged is None:
                    raise
                raise UserError(damaged) from error
            start += size
            yield self.normalised(uploaded(pixels, self.device)), uploaded(labels, self.device).long()


Decoder = Callable[[ImageFiles, Decoding], Iterator[tuple[Tensor, Tensor]]]


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


def uploaded(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; a GPU gets a copy, since a decoder may reuse its memory meanwhile."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
