"""Networks, checkpoints and images from elsewhere."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import main
import models
import snn
from utils.checkpoints.checkpoint import load_network, read_checkpoint
from utils.config import DataSettings
from utils.data.cifar import load_images
from utils.data.splits import Data
from utils.errors import UserError

SMALL = """
import torch.nn as nn
import torch.nn.functional as F

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 8, 3, 2), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(F.max_pool2d(F.relu(self.conv2(F.relu(self.bn(self.conv(x))))), 2).mean((2, 3)))

def network(num_classes):
    return Small(num_classes)
"""
APOT = """
import torch.nn as nn

class Block(nn.Module):
    def __init__(self, width, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(width, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x) if hasattr(self, "downsample") else x
        return self.relu(y)

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = nn.Sequential(Block(16, 16, 1)), nn.Sequential(Block(16, 32, 2))
        self.layer3, self.layer4 = nn.Sequential(Block(32, 64, 2)), nn.Sequential(Block(64, 128, 2))
        self.fc = nn.Linear(128, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))

def network(num_classes):
    return Net(num_classes)
"""


@pytest.fixture
def small_file(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    return f"{tmp_path / 'small.py'}:network"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 40 random images in 4 classes, some of another size."""
    draw = np.random.RandomState(0)
    for split, count in (("train", 7), ("test", 3)):
        for name in "abcd":
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                size = (50, 36) if index == 0 else (32, 32)
                Image.fromarray(draw.randint(0, 256, (*size, 3)).astype(np.uint8)).save(place / f"{index}.png")
    return tmp_path / "images"


def test_a_folder_is_read_by_class_with_its_mean_and_std(folder, capsys):
    images = load_images("folder", folder, train=True)
    assert images.images.shape == (28, 3, 32, 32)
    assert images.labels.tolist() == [label for label in range(4) for _ in range(7)]
    assert "4 of 28 images" in capsys.readouterr().err
    assert load_images("folder", folder, train=False, size=16).images.shape == (12, 3, 16, 16)
    data = Data(DataSettings("folder", folder, 32), torch.device("cpu"))
    batch, _ = next(iter(data.batches(train=False)))
    train, test = (load_images("folder", folder, train=train).images.float() / 255 for train in (True, False))
    expected = (test - train.mean((0, 2, 3), keepdim=True)) / train.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(batch, expected, rtol=1e-4, atol=1e-4)
    assert data.classes == 4


def test_a_broken_file_and_a_missing_class_are_named(folder):
    (folder / "train" / "b" / "3.png").write_text("no image")
    with pytest.raises(UserError, match=r"b/3\.png cannot be decoded"):
        load_images("folder", folder, train=True)
    for file in (folder / "test" / "c").iterdir():
        file.unlink()
    (folder / "test" / "c").rmdir()
    with pytest.raises(UserError, match="test lacks c"):
        Data(DataSettings("folder", folder), torch.device("cpu"))


def test_a_float_file_of_anyone_is_loaded_strictly_into_the_users_network(small_file, tmp_path):
    torch.manual_seed(0)
    theirs = models.module(small_file, "digits", 10).eval()
    state = {f"module.{key}": value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    for name, contents in (("plain", state), ("wrapped", {"state_dict": state, "best": 1.0}), ("net", {"net": state, "epoch": 3})):
        torch.save(contents, tmp_path / f"{name}.pth")
        network = load_network(tmp_path / f"{name}.pth", small_file, 32, "digits")
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(network(images), theirs(images))
    torch.save({key: value for key, value in state.items() if "conv2.bias" not in key}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"Missing key\(s\).*conv2\.bias"):
        load_network(tmp_path / "short.pth", small_file, 32, "digits")
    with pytest.raises(UserError, match="is float: --fit N quantizes it"):
        load_network(tmp_path / "plain.pth", small_file, 4, "digits")


def test_apots_imagenet_layout_is_a_start_with_the_thresholds_of_what_each_convolution_reads(find, tmp_path):
    path = find("checkpoints/apot_resnet10_mnist_4bit.pth.tar")
    (tmp_path / "apot.py").write_text(APOT)
    network = load_network(path, f"{tmp_path / 'apot.py'}:network", 4, "digits")
    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path)["state_dict"].items()}
    assert network.trainable_start
    thresholds = {name: relu.threshold.item() for name, relu in network.units()}
    assert thresholds["relu"] == state["layer1.0.conv1.act_alpha"].item()
    assert thresholds["layer1.0.relu"] == state["layer1.0.conv2.act_alpha"].item()
    assert thresholds["layer1.0.relu_2"] == state["layer2.0.conv1.act_alpha"].item()
    assert thresholds["layer4.0.relu_2"] == 6
    alphas = {name: p.item() for name, p in network.named_parameters() if name.endswith("alpha")}
    assert alphas["layer3.0.downsample.0.weight_quantizer.alpha"] == state["layer3.0.downsample.0.weight_alpha"].item()
    assert len(alphas) == 11


def test_a_float_checkpoint_is_quantized_fitted_saved_and_converted_with_its_pixels(small_file, tmp_path):
    torch.manual_seed(0)
    torch.save(models.module(small_file, "digits", 10).state_dict(), tmp_path / "float.pth")
    common = ["--arch", small_file, "--dataset", "digits", "--result", str(tmp_path / "result")]
    pixels = ["--mean", "0.1", "0.2", "0.3", "--std", "0.5", "0.6", "0.7"]
    fitted = snn.main([*common, *pixels, "--init", str(tmp_path / "float.pth"), "--bit", "3", "--fit", "64", "--weight-bit", "32"])
    saved = tmp_path / "result" / "small-network_3bit" / "model_best.pth.tar"
    contents = read_checkpoint(saved)
    assert (contents["arch"], contents["bit"], contents["weight_bit"]) == (small_file, 3, 32)
    assert (contents["mean"], contents["std"]) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    again = snn.main([*common, "--init", str(saved)])  # bits and pixels are the checkpoint's
    assert again["snn"] == fitted["snn"]
    assert again["layers"] == fitted["layers"]
    before = saved.read_bytes()
    run = [*common, *pixels, "--init", str(tmp_path / "float.pth"), "--bit", "3", "--fit", "16"]
    with pytest.raises(UserError, match=r"holds a run already: .* --overwrite"):
        snn.main(run)
    snn.main([*run, "-t"])  # a smoke test has a directory of its own
    assert saved.read_bytes() == before
    assert json.loads((saved.parent / "config.json").read_text())["settings"]["spiking"]["fit"] == 64
    with pytest.raises(UserError, match="never imported"):
        load_network(saved)
    with pytest.raises(UserError, match=r"is of the network \S+small.py:network: name it with --arch"):
        snn.main(["--init", str(saved), "--dataset", "digits"])


def test_a_network_of_a_file_trains_and_goes_on(small_file, tmp_path):
    common = ["--arch", small_file, "--dataset", "digits", "--result", str(tmp_path), "--lr", "0.01"]
    whole = main.main([*common, "--epochs", "2"])
    result = main.main([*common, "--bit", "3", "--epochs", "1", "--init", str(whole["directory"] / "model_best.pth.tar")])
    network = load_network(result["directory"] / "model_best.pth.tar", small_file)
    assert (network.bit, network.facts.mean) == (3, (0.305,) * 3)
    assert list(network.graph.activations) == ["activation", "activation_2"]
