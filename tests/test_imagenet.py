"""ImageNet's files, their split over processes, and the two decoders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import picture, resident
from PIL import Image

import models
from quant import fit_
from utils.checkpoints.checkpoint import load_network
from utils.checkpoints.importer import load_published, units_of
from utils.data.image_files import MEAN, STD, list_images, read_splits
from utils.data.imagenet import LOADERS, ImageLoader
from utils.distributed.processes import Place
from utils.errors import UserError

SIZES = [(500, 375), (375, 500), (224, 300), (90, 130), (256, 256), (641, 333), (300, 301)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return a directory with train/ and val/: 7 classes, one JPEG each, of several sizes."""
    base = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for label, size in enumerate(SIZES):
            folder = base / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            picture(*size, seed=label).save(folder / f"{label}.JPEG", quality=90)
    return base


@pytest.fixture(params=LOADERS)
def decoder(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def loader(root: Path, decoder: str = "torchvision", split: str = "val", **options) -> ImageLoader:
    return ImageLoader(list_images(root / split), **{"batch_size": 3, "augment": False, "decoder": decoder, "workers": 1} | options)


def test_labels_are_the_places_of_the_sorted_folders(root):
    for directories in ([root], [root / "train", root / "val"]):
        train, val = read_splits(directories)
        assert train.labels == val.labels == list(range(7))
        assert [Path(path).parent.name for path in val.paths] == val.classes == sorted(val.classes)
        assert "/train/" in train.paths[0]
        assert "/val/" in val.paths[0]


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(UserError, match=r"none.train does not exist"):
        read_splits([tmp_path / "none"])
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train has no class folders"):
        read_splits([tmp_path])
    (tmp_path / "train" / "n00000000").mkdir()
    with pytest.raises(UserError, match=r"n00000000 has no .JPEG"):
        read_splits([tmp_path])
    shutil.copytree(root / "val" / "n00000001", tmp_path / "train" / "n00000001")
    shutil.rmtree(tmp_path / "train" / "n00000000")
    with pytest.raises(UserError, match=r"different classes, .* lacks n00000000 for example"):
        read_splits([tmp_path / "train", root / "val"])


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
def test_each_validation_image_comes_exactly_once(root, world):
    shards = [loader(root, place=Place(rank, 0, world)) for rank in range(world)]
    paths = [path for shard in shards for path in shard.shard().paths]
    assert sorted(paths) == sorted(shards[0].files.paths)
    assert [shard.count for shard in shards] == [len(shard.shard()) for shard in shards]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_training_gives_all_processes_equally_many_images_and_leaves_none_out(root, world):
    for epoch in range(3):
        shards = []
        for rank in range(world):
            shards.append(loader(root, split="train", augment=True, batch_size=4, place=Place(rank, 0, world)))
            shards[-1].set_epoch(epoch)
        files = [shard.shard().paths for shard in shards]
        assert len({len(shard) for shard in files}) == 1
        assert len({len(shard) for shard in shards}) == 1
        assert {path for shard in files for path in shard} == set(shards[0].files.paths)


def test_the_place_on_the_node_does_not_choose_the_images(root):
    """Two nodes of two processes: local ranks repeat, so that shards by local rank would read the same half twice."""
    places = [Place(rank, rank % 2, 4) for rank in range(4)]
    paths = [path for place in places for path in loader(root, place=place).shard().paths]
    assert len(set(paths)) == len(paths) == 7


def test_the_order_is_a_function_of_seed_and_epoch(root):
    def order(seed: int, epoch: int) -> list[str]:
        train = loader(root, split="train", augment=True, seed=seed)
        train.set_epoch(epoch)
        return train.shard().paths

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(3)}) == 6


def test_a_single_last_training_image_joins_the_batch_before_it(root, decoder):
    """As in the loader of tensors, see tests/test_cifar.py: BN cannot train on a single image."""
    train = loader(root, decoder, split="train", augment=True)
    assert [len(labels) for _, labels in train] == [3, 4]
    assert len(train) == 2
    assert sorted(torch.cat([labels for _, labels in train]).tolist()) == list(range(7))
    assert [len(labels) for _, labels in loader(root)] == [3, 3, 1]


def test_batches_are_normalised_channels_last_and_labelled(root, decoder):
    images, labels = zip(*loader(root, decoder), strict=True)
    assert [len(batch) for batch in images] == [3, 3, 1]
    assert torch.cat(labels).tolist() == list(range(7))
    assert images[0].is_contiguous(memory_format=torch.channels_last)
    assert (images[0].dtype, labels[0].dtype) == (torch.float32, torch.int64)
    pixels = torch.cat(images).permute(0, 2, 3, 1) * torch.tensor(STD) * 255 + torch.tensor(MEAN) * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    # An image of 256x256 is not resized: its centre is the crop.
    expected = np.asarray(Image.open(loader(root).files.paths[4]))[16:240, 16:240]
    torch.testing.assert_close(pixels[4].round(), torch.from_numpy(expected.copy()).float(), rtol=0, atol=0)


def test_the_decoders_agree_on_validation_images(root, find):
    pytest.importorskip("nvidia.dali")
    places = [root, find("data/imagenet-sample")]
    for place in places:
        found = [torch.cat([images for images, _ in loader(place, decoder)]) for decoder in LOADERS]
        error = (found[0] - found[1]).abs() * torch.tensor(STD)[:, None, None] * 255
        assert error.mean((1, 2, 3)).max() < 1  # of 256 levels; a crop one pixel aside gives 10


@pytest.mark.parametrize("augment", [False, True])
def test_pixels_are_taken_as_stored_whatever_the_exif_orientation_says(tmp_path, decoder, augment):
    """TorchVision's weights were trained so; DALI turns images by default."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    for name, options in {"plain": {}, "turned": {"exif": exif}}.items():
        (tmp_path / name / "n0").mkdir(parents=True)
        picture(300, 256, seed=0).save(tmp_path / name / "n0" / "0.JPEG", **options)
    assert Image.open(tmp_path / "turned" / "n0" / "0.JPEG").getexif()[0x0112] == 6
    plain, turned = (next(iter(loader(tmp_path, decoder, name, augment=augment)))[0] for name in ("plain", "turned"))
    assert torch.equal(plain, turned)


def test_augmentation_repeats_and_changes_with_the_epoch(root, decoder):
    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        train = loader(root, decoder, "train", augment=True, batch_size=7, seed=seed)
        train.set_epoch(number)
        return next(iter(train))[0]

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1).sort(0).values, epoch(2).sort(0).values)
    assert not torch.equal(epoch(1).sort(0).values, epoch(1, seed=1).sort(0).values)


def test_a_corrupt_image_is_named(root, tmp_path, decoder):
    shutil.copytree(root, tmp_path / "copy")
    victim = tmp_path / "copy" / "val" / "n00000005" / "5.JPEG"
    for content in (b"no picture", victim.read_bytes()[:400], b""):
        victim.write_bytes(content)
        with pytest.raises(UserError, match=r"n00000005/5.JPEG cannot be decoded"):
            list(loader(tmp_path / "copy", decoder))


def test_without_dali_the_remedy_is_named(root, monkeypatch):
    monkeypatch.setattr("utils.data.imagenet.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"DALI is not installed.*--loader torchvision"):
        loader(root, "dali")


def test_more_processes_than_images_are_refused(root):
    with pytest.raises(UserError, match="7 images are too few for 8 processes"):
        loader(root, place=Place(0, 0, 8))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_flat_over_epochs(root, decoder):
    train = loader(root, decoder, "train", augment=True, workers=1)
    used = []
    for epoch in range(24):
        train.set_epoch(epoch)
        assert sum(len(labels) for _, labels in train) == 7
        used.append(resident())
    assert max(used[16:]) - max(used[8:16]) < 16  # MB; a pipeline that stays takes 20 an epoch


@torch.no_grad()
@pytest.mark.parametrize("arch", ["alexnet", "vgg11"])
def test_torchvision_weights_compute_what_torchvision_computes(arch):
    """Unit by unit: a convolution with stride 2 is every second value of TorchVision's with stride 1."""
    torch.manual_seed(0)
    theirs = (torchvision.models.alexnet if arch == "alexnet" else torchvision.models.vgg11_bn)(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = load_published(theirs.state_dict(), arch, None, "imagenet").eval()
    assert ours.trainable_start
    layers = [m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear)]
    for name, unit in units_of(ours):
        layer = layers.pop(0)
        if isinstance(layer, torch.nn.Conv2d):
            x = torch.randn(1, layer.in_channels, 23, 23)
            expected = F.conv2d(x, layer.weight, layer.bias, unit.conv.stride, unit.conv.padding)
            expected = layers.pop(0)(expected) if arch == "vgg11" else expected
        else:
            x = torch.randn(2, layer.in_features)
            expected = layer(x)
        torch.testing.assert_close(unit(x), expected.relu(), rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(ours.head.weight, layers.pop().weight)
    assert layers == []


def test_torchvision_weights_of_another_network_are_refused():
    state = torchvision.models.vgg11_bn(weights=None).state_dict()
    with pytest.raises(ValueError, match="another network"):
        load_published(state, "alexnet", None, "imagenet")


def test_a_start_for_training_is_fitted_before_it_counts(tmp_path):
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    network = load_network(tmp_path / "alexnet.pth", "alexnet", dataset="imagenet")
    assert network.trainable_start
    images = torch.randn(8, 3, 224, 224)
    fit_(network, images)
    assert network.eval()(images).std() > 0.01
    assert network.bit == 32
    assert network.num_classes == models.CLASSES["imagenet"]
