"""The image sets and the loader."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from utils.data.cifar import ImageSet, TensorLoader, load_images
from utils.errors import UserError


@pytest.fixture
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (50, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(50) % 10, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), flips=True)


def write_binary(root, labels: np.ndarray, coarse: bool = False) -> np.ndarray:
    """Write one file of the official binary layout; return its pixels [N, 3, 32, 32]."""
    pixels = np.random.RandomState(0).randint(0, 256, (len(labels), 3072)).astype(np.uint8)
    columns = [np.zeros((len(labels), 1), np.uint8)] * coarse + [labels[:, None].astype(np.uint8), pixels]
    root.parent.mkdir(exist_ok=True, parents=True)
    np.concatenate(columns, axis=1).tofile(root)
    return pixels.reshape(-1, 3, 32, 32)


def test_binary_cifar10_is_read_as_it_is(tmp_path):
    expected = [write_binary(tmp_path / "cifar-10-batches-bin" / f"data_batch_{i}.bin", np.arange(4) + i) for i in range(1, 6)]
    images = load_images("cifar10", tmp_path, train=True)
    assert np.array_equal(images.images.numpy(), np.concatenate(expected))
    assert images.labels.tolist() == [label + i for i in range(1, 6) for label in range(4)]


def test_cifar100_takes_the_fine_label(tmp_path):
    write_binary(tmp_path / "cifar-100-binary" / "test.bin", np.array([99, 3]), coarse=True)
    assert load_images("cifar100", tmp_path, train=False).labels.tolist() == [99, 3]


def test_truncated_missing_and_foreign_files_are_errors(tmp_path):
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    with pytest.raises(UserError, match="no CIFAR-10 in"):
        load_images("cifar10", tmp_path, train=False)
    write_binary(file, np.array([1, 2]))
    with pytest.raises(UserError, match=r"data_batch_1.bin is missing"):
        load_images("cifar10", tmp_path, train=True)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        load_images("cifar10", tmp_path, train=False)
    write_binary(file, np.array([1, 77]))
    with pytest.raises(UserError, match="label 77"):
        load_images("cifar10", tmp_path, train=False)


def test_digits_split_is_fixed_and_disjoint():
    train, test = load_images("digits", "nowhere", True), load_images("digits", "nowhere", False)
    assert (len(train), len(test)) == (1437, 360)
    digits = load_digits()
    assert torch.equal(test.labels, torch.from_numpy(digits.target[::5]))
    assert torch.equal(train.labels, torch.from_numpy(np.delete(digits.target, np.s_[::5])))
    assert train.images.shape == (1437, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert set(test.labels.tolist()) == set(range(10))


def test_unaugmented_batches_are_the_normalised_images_in_order(images):
    batches = list(TensorLoader(images, 16, augment=False))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), (images.images / 255 - mean) / std)
    assert torch.equal(torch.cat([y for _, y in batches]), images.labels)


def test_augmented_images_are_crops_and_flips_of_the_padded_ones(images):
    loader = TensorLoader(images, 50, augment=True, seed=1)
    padded = torch.nn.functional.pad(images.images, (4, 4, 4, 4))
    order, *crops = loader.plan()
    flipped = 0
    for crop, image in zip(loader.crops(order, *crops).permute(0, 3, 1, 2), padded[order], strict=True):
        windows = {image[:, t:t + 32, left:left + 32].numpy().tobytes(): False for t in range(9) for left in range(9)}
        windows |= {image[:, t:t + 32, left:left + 32].flip(2).numpy().tobytes(): True for t in range(9) for left in range(9)}
        flipped += windows[crop.contiguous().numpy().tobytes()]
    assert 10 < flipped < 40


def test_each_epoch_has_every_image_once_in_an_order_of_its_own(images):
    loader = TensorLoader(images, 16, augment=True, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batches = list(loader)
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
        assert sorted(orders[-1]) == sorted(images.labels.tolist())
    assert orders[0] == orders[2] != orders[1]
    assert len(loader) == 4


def test_seeds_repeat_bit_for_bit(images):
    runs = [torch.cat([x for x, _ in TensorLoader(images, 16, augment=True, seed=seed)]) for seed in (7, 7, 8)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_digits_are_never_mirrored():
    digits = load_images("digits", "nowhere", True)
    loader = TensorLoader(digits, 64, augment=True)
    order, *places = loader.plan()[:, :20]
    padded = torch.nn.functional.pad(digits.images[order], (4, 4, 4, 4))
    for crop, image in zip(loader.crops(order, *places).permute(0, 3, 1, 2), padded, strict=True):
        assert any(torch.equal(crop, image[:, t:t + 32, left:left + 32]) for t in range(9) for left in range(9))


def test_limit_takes_a_fixed_spread_of_images(images):
    loader = TensorLoader(images, 16, augment=False, limit=5)
    assert torch.cat([labels for _, labels in loader]).tolist() == [0, 2, 4, 6, 9]
    assert len(loader.first(3)) == 3


def test_no_training_batch_is_a_single_image(images):
    for size, batches in ((7, 7), (49, 1), (50, 1), (16, 4), (1, 50)):
        loader = TensorLoader(images, size, augment=True)
        lengths = [len(labels) for _, labels in loader]
        assert (len(lengths), len(loader), sum(lengths)) == (batches, batches, 50)
        assert min(lengths) > 1 or size == 1
    assert [len(labels) for _, labels in TensorLoader(images, 49, augment=False)] == [49, 1]


def test_memory_format_is_what_was_asked_for(images):
    for channels_last, expected in ((True, torch.channels_last), (False, torch.contiguous_format)):
        batch, _ = next(iter(TensorLoader(images, 16, augment=True, channels_last=channels_last)))
        assert batch.is_contiguous(memory_format=expected)


def test_files_that_lack_images_are_noted(tmp_path, capsys):
    write_binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", np.array([1, 2]))
    load_images("cifar10", tmp_path, train=False)
    assert f"note: {tmp_path} has 2 of the 10000 test images" in capsys.readouterr().err


def test_the_set_is_left_as_it_was(images):
    kept = images.images.clone()
    for _ in TensorLoader(images, 16, augment=True):
        pass
    assert torch.equal(images.images, kept)
