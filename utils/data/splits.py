"""The data set that the settings name, as loaders with one interface."""

from dataclasses import replace

import torch

import models
from models import Network, reason_of

from ..config import DataSettings
from ..distributed.processes import Place
from ..errors import UserError
from .batches import Batches
from .cifar import ImageSet, TensorLoader, load_images
from .image_files import MEAN, SIZE, STD, ImageFiles, read_splits
from .image_sets import folder_splits
from .imagenet import ImageLoader, has_dali


class Data:
    """Both splits of the data set that the settings name; each is read once, when it is first needed.

    Attributes:
        classes: number of classes of the data set.
        fit_images: training images on which a network is fitted; they fit into memory as one batch.
        pixels: (mean, std) of the channels with which pixels are normalised: those of the flags, else of the network, else of the
            data set.

    Raises:
        UserError: no ImageNet in the directories, no images in a folder, or several processes for CIFAR.
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
            folder = settings.dataset == "folder"
            self.classes = len(folder_splits(settings.data)[0].classes) if folder else models.CLASSES[settings.dataset]
            self.fit_images = 1024
        self.pixels = None if settings.mean is None else (settings.mean, settings.std)

    def batches(self, train: bool, augment: bool = False, limit: int | None = None) -> Batches:
        """Return batches of a split as the settings ask for them."""
        how, images = self.settings, self.split(train)
        if isinstance(images, ImageSet):
            mean, std = self.normalisation()
            images = replace(images, mean=mean, std=std)
            return TensorLoader(images, how.batch_size, augment, how.seed, self.device, limit, how.channels_last)
        decoder = how.loader or ("dali" if has_dali() else "torchvision")
        return ImageLoader(images, how.batch_size, augment, decoder, self.device, self.place, how.seed, how.workers,
                           how.dali_cpu, limit, how.channels_last, self.normalisation())

    def split(self, train: bool) -> ImageSet | ImageFiles:
        """Return a split, read once."""
        if train not in self.splits:
            self.splits[train] = load_images(self.settings.dataset, self.settings.data, train, self.settings.size or 32)
        return self.splits[train]

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel on the scale [0, 1]; for a folder those of its training images."""
        if self.pixels is None and self.settings.directories:
            return MEAN, STD
        if self.pixels is None:
            measured = self.settings.dataset == "folder"
            split = next(iter(self.splits.values())) if self.splits and not measured else self.split(train=True)
            return split.mean, split.std
        return self.pixels

    def placed(self, network: Network) -> Network:
        """Move a network, in place, to the device and the memory format of the batches; return it."""
        flat = all(parameter.dim() != 5 for parameter in network.parameters())  # no weights of a 3-d convolution
        memory_format = torch.channels_last if self.settings.channels_last and flat else torch.contiguous_format
        return network.to(self.device, memory_format=memory_format)

    def check(self, network: Network, source: object) -> Network:
        """Return a network, read from `source`, after a check of its classes; its pixel statistics become those of the data.

        Raises:
            UserError: its number of classes is not that of the data set, or see `fits`.
        """
        if network.num_classes != self.classes:
            raise UserError(f"{source} has {network.num_classes} classes, the data set {self.classes}: name the data set that "
                            "it was trained on")
        if self.pixels is None and network.facts.mean is not None:
            self.pixels = network.facts.mean, network.facts.std
        return self.fits(network)

    def fits(self, network: Network) -> Network:
        """Return a network after a check that its outputs are logits of the data set's classes; ours fit images of a known size.

        Raises:
            UserError: it fails on the images, or has another output.
        """
        dataset, training = self.settings.dataset, network.training
        if dataset != "folder" and network.arch in models.architectures(dataset):
            return network
        side = SIZE if self.settings.directories else self.settings.size or 32
        try:
            with torch.no_grad():
                logits = network.eval()(torch.zeros(2, 3, side, side))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"--arch {network.arch}: fails on images [2, 3, {side}, {side}] ({reason_of(error)})") from error
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if shape != [2, self.classes]:
            raise UserError(f"--arch {network.arch}: outputs {shape} for 2 images, not [2, {self.classes}]: it should return "
                            "logits of num_classes classes")
        return network.train(training)

    def described(self, network: Network) -> Network:
        """Store in a network, in place, how its pixels are normalised; return it."""
        mean, std = self.normalisation()
        network.facts = replace(network.facts, mean=mean, std=std)
        return network
