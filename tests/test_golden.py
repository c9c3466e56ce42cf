"""Recorded behaviour of the published implementation, network by network."""

import numpy as np
import pytest
import torch

from snn_layers import to_spiking
from utils.checkpoints.checkpoint import load_network

NETWORKS = [("cifar10", arch, bit, f"cifar10_{prefix}{arch}_{bit}bit")
            for prefix, arch, bits in (("", "alex", (32, 4, 3, 2)), ("", "vgg11", (32, 3, 2)), ("res_", "resnet20", (4, 3, 2)),
                                       ("res_", "resnet44", (3,)), ("res_", "resnet56", (2,)), ("resnet18_", "resnet18", (3, 2)))
            for bit in bits]
NETWORKS += [("imagenet", "alexnet", bit, f"imagenet_alexnet_{bit}bit") for bit in (4, 3, 2)]
NETWORKS += [("imagenet", "vgg16", 2, "imagenet_vgg16_2bit")]
# Wide networks take up to ten seconds each; the usual run leaves these out.
LARGE = [("alex", 3), ("alex", 2), ("vgg11", 2), ("resnet18", 3), ("alexnet", 4), ("alexnet", 2), ("vgg16", 2)]


@pytest.mark.parametrize(("dataset", "arch", "bit", "name"), [
    pytest.param(*network, marks=[pytest.mark.slow] * (network[1:3] in LARGE)) for network in NETWORKS])
def test_logits_agree_with_the_recorded_network(recorded, tmp_path, dataset, arch, bit, name):
    arrays, state = recorded(name)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "published.pth.tar")
    ann = load_network(tmp_path / "published.pth.tar", arch, bit, dataset).double()
    size, count = (224, 2) if dataset == "imagenet" else (32, 4)
    images = torch.from_numpy(np.random.RandomState(1000).randn(count, 3, size, size).astype(np.float32)).double()
    with torch.inference_mode():
        assert_close(ann(images), arrays["ann"])
        for neuron in ("signed", "unsigned") if bit < 32 else ():
            spiking = to_spiking(ann, neuron)
            assert_close(spiking(images) * spiking.time_steps, arrays[f"snn_{neuron}"])  # recorded as sums over T


def assert_close(logits: torch.Tensor, expected: np.ndarray) -> None:
    error = np.abs(logits.numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-4
