"""Shared by the tests: recorded networks, places of data, small networks."""

import copy
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Forks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from models import BasicBlock, Facts, Network, Stack
from models.unit import conv_unit
from quant import fit_, quantize_
from utils.data.cifar import load_images

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
# The longest files, which go first: at the end of a run a worker would be alone with them.
LONG = ("scripts", "distributed", "faults", "golden", "device", "through_time", "kill", "properties", "lock", "deploy", "stages",
        "own_neuron", "finetune", "reproduce", "imagenet", "guards")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the tests of a file stay together and in order."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def filled(name: str, shape: list[int], seed: int = 0) -> np.ndarray:
    """Return the recorded networks' tensor `name`: a function of its published name and shape."""
    draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.asarray(1)
    if leaf.endswith("alpha"):
        return np.float32((1.0 if leaf == "act_alpha" else 2.0) + draw.rand())
    if leaf in ("running_mean", "bias"):
        return (0.1 * draw.randn(*shape)).astype(np.float32)
    if leaf == "running_var" or len(shape) == 1:
        return (0.5 + draw.rand(*shape)).astype(np.float32)
    return (draw.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture
def recorded():
    """Return a function: recorded file name -> (arrays, published state dict)."""

    def read(name: str) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = dict(file)
        shapes = json.loads(str(arrays["keys"]))
        return arrays, {key: torch.from_numpy(np.asarray(filled(key, shape))) for key, shape in shapes.items()}

    return read


@pytest.fixture
def find():
    """Return a function: a path below the repository or ../shared; it skips the test if there is none."""

    def place(name: str) -> Path:
        for base in (ROOT, ROOT.parent / "shared"):
            if (base / name).exists():
                return base / name
        pytest.skip(f"{name} is not here")

    return place


@pytest.fixture(scope="session")
def fitted() -> Network:
    torch.manual_seed(0)
    network = quantize_(models.build("resnet20"), 2)
    return fit_(network, torch.randn(32, 3, 32, 32)).eval()


@pytest.fixture
def quantized(fitted) -> Network:
    """Return a 2-bit ResNet-20, fitted to noise, in eval mode."""
    return copy.deepcopy(fitted)


@pytest.fixture
def small() -> Network:
    """Return a 2-bit network of five units with a stride, a shortcut and an identity, for images of any size, in eval mode."""
    torch.manual_seed(0)
    body = nn.Sequential(conv_unit(3, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
    stack = Stack(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(16, 5))
    network = Network(stack, Facts("resnet20", "cifar10", 5))
    return fit_(quantize_(network, 2), torch.randn(24, 3, 9, 7)).eval()


@pytest.fixture(scope="session")
def primitives() -> dict[str, np.ndarray]:
    """Return the recorded quantizers and spike trains."""
    with np.load(GOLDEN / "primitives.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Return a directory with a CIFAR-10 of 40 training and 16 test images, noise."""
    root = tmp_path_factory.mktemp("tiny")
    folder, draw = root / "cifar-10-batches-bin", np.random.RandomState(0)
    folder.mkdir()
    for name, count in [*((f"data_batch_{i}.bin", 8) for i in range(1, 6)), ("test_batch.bin", 16)]:
        records = draw.randint(0, 256, (count, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    return root


@pytest.fixture
def few(monkeypatch):
    """Let the scripts see 48 images of the digits."""
    def shortened(*args: object) -> object:
        images = load_images(*args)
        return replace(images, images=images.images[:48], labels=images.labels[:48])

    monkeypatch.setattr("utils.data.splits.load_images", shortened)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Return a process that runs scripts in forks of itself."""
    with subprocess.Popen([sys.executable, str(ROOT / "tests" / "forks.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        yield Forks(process)
        process.stdin.close()


class Operators(TorchDispatchMode):
    """Records each operator's name and the number of elements of its largest result."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append(function.overloadpacket.__name__)
        tensors = result if isinstance(result, tuple | list) else [result]
        self.largest = max([self.largest, *(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))])
        return result


@pytest.fixture
def operators() -> type[Operators]:
    """Return a context that records operators."""
    return Operators


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make a download fail as it does without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
