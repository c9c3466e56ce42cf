"""The data set that the settings name, as loaders with one interface."""

import torch

import models
from models import Network

from ..config import DataSettings
from ..distributed.processes import Place
from ..errors import UserError
from .cifar import ImageSet, TensorLoader, load_images
from .image_files import ImageFiles, read_splits
from .imagenet import ImageLoader, has_dali

Loader = TensorLoader | ImageLoader  # both have count, device, first(n), set_epoch(n), and yield (images, labels)


class Data:
    """Both splits of the data set that the settings name; each is read once, when it is first needed.

    Attributes:
        classes: how many the data set has.
        fit_images: training images for fitting BN statistics and thresholds: what fits into memory in one batch.

    Raises:
        UserError: no ImageNet in the directories, or several processes for CIFAR.
    """

    def __init__(self, settings: DataSettings, device: torch.device, place: Place | None = None):
        self.settings, self.device, self.place = settings, device, place or Place()
        self.splits: dict[bool, ImageSet | ImageFiles] = {}
        if settings.directories:
            self.splits[True], self.splits[False] = read_splits(settings.directories)
            self.classes, self.fit_images = len(self.splits[True].classes), 128
        else:
            if self.place.world > 1:
                raise UserError(f"{self.place.world} processes: {settings.dataset} runs in one; for ImageNet name its directory")
            self.classes, self.fit_images = models.CLASSES[settings.dataset], 1024

    def batches(self, train: bool, augment: bool = False, limit: int | None = None) -> Loader:
        """Return batches of a split as the settings ask for them."""
        how = self.settings
        if train not in self.splits:
            self.splits[train] = load_images(how.dataset, how.data, train)
        images = self.splits[train]
        if isinstance(images, ImageSet):
            return TensorLoader(images, how.batch_size, augment, how.seed, self.device, limit, how.channels_last)
        decoder = how.loader or ("dali" if has_dali() else "torchvision")
        return ImageLoader(images, how.batch_size, augment, decoder, self.device, self.place, how.seed, how.workers,
                           how.dali_cpu, limit, how.channels_last)

    def placed(self, network: Network) -> Network:
        """Move a network, in place, to the device and the memory format of the batches; return it."""
        memory_format = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return network.to(self.device, memory_format=memory_format)

    def check(self, network: Network, source: object) -> Network:
        """Return a network, read from `source`, that has as many classes as the data set.

        Raises:
            UserError: it has more or fewer, so that the labels would mean something else.
        """
        if network.num_classes != self.classes:
            raise UserError(f"{source} has {network.num_classes} classes, the data set {self.classes}: name the data set that "
                            "it was trained on")
        return network
