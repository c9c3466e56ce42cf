"""The data set that the flags name, as loaders with one interface."""

import argparse

import torch

import models
from models import Network

from ..distributed.processes import Place
from ..errors import UserError
from .cifar import ImageSet, TensorLoader, load_images
from .image_files import ImageFiles, read_splits
from .imagenet import ImageLoader, has_dali

Loader = TensorLoader | ImageLoader  # both have count, device, first(n), set_epoch(n), and yield (images, labels)


class Data:
    """Both splits of the data set that the flags name; each is read once, when it is first needed.

    Attributes:
        classes: how many the data set has.
        fit_images: training images for fitting BN statistics and thresholds: what fits into memory in one batch.

    Raises:
        UserError: no ImageNet in the directories, or several processes for CIFAR.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.place = args, device, Place.of_environment(args.local_rank)
        self.splits: dict[bool, ImageSet | ImageFiles] = {}
        if args.directories:
            self.splits[True], self.splits[False] = read_splits(args.directories)
            self.classes, self.fit_images = len(self.splits[True].classes), 128
        else:
            if self.place.world > 1:
                raise UserError(f"{self.place.world} processes: {args.dataset} runs in one; for ImageNet name its directory")
            self.classes, self.fit_images = models.CLASSES[args.dataset], 1024

    def batches(self, train: bool, augment: bool = False, limit: int | None = None) -> Loader:
        """Return batches of a split as the flags ask for them."""
        args = self.args
        if train not in self.splits:
            self.splits[train] = load_images(args.dataset, args.data, train)
        images = self.splits[train]
        if isinstance(images, ImageSet):
            return TensorLoader(images, args.batch_size, augment, args.seed, self.device, limit, args.channels_last)
        decoder = args.loader or ("dali" if has_dali() else "torchvision")
        return ImageLoader(images, args.batch_size, augment, decoder, self.device, self.place, args.seed, args.workers,
                           args.dali_cpu, limit, args.channels_last)

    def check(self, network: Network, source: object) -> Network:
        """Return a network, read from `source`, that has as many classes as the data set.

        Raises:
            UserError: it has more or fewer, so that the labels would mean something else.
        """
        if network.num_classes != self.classes:
            raise UserError(f"{source} has {network.num_classes} classes, the data set {self.classes}: name the data set that "
                            "it was trained on")
        return network
