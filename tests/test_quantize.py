"""The first swap, quantize_, and the fit that follows it."""

import warnings

import pytest
import torch
from torch import nn

import models
from quant import APoTWeight, EightBitWeight, QuantReLU, dequantize_, fit_, quantize_, quantized_once, requantize_
from quant.fit import best_clip, best_threshold, layers_without_norm
from snn_layers import to_spiking

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def precision(network: nn.Module) -> list[int]:
    """Return the bits of each conv and linear layer in forward order; 32 is float."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [layer.weight_quantizer.bits if hasattr(layer, "weight_quantizer") else 32 for layer in layers]


def units(network: nn.Module) -> list[models.Unit]:
    """Return the units of a network in order."""
    return [module for module in network.modules() if isinstance(module, models.Unit)]


@pytest.mark.parametrize(("arch", "dataset", "hidden", "ends"), [
    ("alex", "cifar10", 3, 8), ("vgg11", "cifar100", 3, 8), ("resnet20", "cifar10", 3, 8), ("resnet18", "cifar10", 32, 32),
    ("alexnet", "imagenet", 32, 8), ("vgg11", "imagenet", 32, 8)])
def test_the_recipe_says_what_is_quantized(arch, dataset, hidden, ends):
    with torch.device("meta"):
        network = models.build(arch, dataset)
    bits = precision(quantize_(network.to_empty(device="cpu"), 3))
    assert (bits[0], bits[-1]) == (ends, ends)
    assert set(bits[1:-1]) == {hidden}
    assert all(m.bits == 3 for m in network.modules() if isinstance(m, QuantReLU))


def test_weight_bit_overrides_the_recipe():
    bits = precision(quantize_(models.build("resnet18"), 2, weight_bit=4))
    assert (bits[0], bits[-1], set(bits[1:-1])) == (8, 8, {4})
    assert set(precision(quantize_(models.build("resnet20"), 2, weight_bit=32))) == {32}


@pytest.mark.parametrize("arch", ["alex", "resnet20"])
def test_parameters_are_shared_and_names_survive(arch):
    network = models.build(arch)
    before = dict(network.named_parameters())
    quantized = quantize_(network, 4)
    assert dict(network.named_parameters()) == before  # the given network stays as it is
    after = dict(quantized.named_parameters())
    new = {name for name in after if name not in before}
    gone = {name for name in before if name not in after}
    assert all(after[name] is before[name] for name in before.keys() & after.keys())
    assert all(name.endswith((".alpha", ".threshold")) for name in new)
    assert all(name.endswith("conv.bias") for name in gone)


def test_the_bias_of_a_convolution_moves_into_bn():
    network = models.build("alex").eval()
    for unit in units(network):
        nn.init.normal_(unit.conv.bias)
    expected = network(IMAGES)
    network = quantize_(network, 8, weight_bit=32)
    for module in network.modules():
        if isinstance(module, QuantReLU):
            module.forward = torch.relu
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_float_is_left_alone_and_what_is_quantized_is_refused():
    network = models.build("resnet20")
    assert quantize_(network, 32) is network
    assert set(precision(network)) == {32}
    with pytest.raises(ValueError, match="weight_bit is 4"):
        quantize_(network, 32, weight_bit=4)
    network = quantize_(network, 4)
    with pytest.raises(ValueError, match="4-bit already"):
        quantize_(network, 3)
    with pytest.raises(ValueError, match="float network starts from a float one"):
        requantize_(network, 32)
    snn = to_spiking(network)
    for undo in (dequantize_, lambda network: requantize_(network, 3)):
        with pytest.raises(ValueError, match="the network spikes"):
            undo(snn)
    assert snn.bit == network.bit != 32


def test_requantize_keeps_what_was_learned():
    network = quantize_(models.build("resnet20"), 4)
    for name, parameter in network.named_parameters():
        if name.endswith((".alpha", ".threshold")):
            parameter.data.fill_(1.25)
    weight = network.head.weight
    network = requantize_(network, 3)
    assert network.bit == 3
    assert network.head.weight is weight
    assert {p.item() for name, p in network.named_parameters() if name.endswith((".alpha", ".threshold"))} == {1.25}
    network = dequantize_(network)
    assert set(precision(network)) == {32}
    assert not any(name.endswith((".alpha", ".threshold")) for name in network.state_dict())


def test_quantizers_sit_where_they_belong():
    network = quantize_(models.build("resnet20"), 3)
    first, head = units(network)[0].conv, network.head
    assert isinstance(first.weight_quantizer, EightBitWeight)
    assert isinstance(head.weight_quantizer, EightBitWeight)
    shortcuts = [unit.shortcut.conv for unit in units(network) if unit.shortcut is not None]
    assert len(shortcuts) == 2
    assert all(isinstance(conv.weight_quantizer, APoTWeight) for conv in shortcuts)


def test_a_quantized_network_trains_every_parameter():
    network = quantize_(models.build("resnet20"), 3).train()
    fit_(network, IMAGES)
    network(IMAGES).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_fitting_gives_each_bn_the_statistics_of_its_input():
    """After 32 -> 4 bits the BN statistics are wrong (a known trap): the fit must leave normalised currents."""
    network = quantize_(models.build("resnet20"), 4).eval()
    normalised = {}
    for name, unit in enumerate(units(network)):
        unit.bn.register_forward_hook(lambda _, __, output, name=name: normalised.update({name: output}))
    network(IMAGES)
    stale = max(abs(output.std().item() - 1) for output in normalised.values())
    fit_(network, IMAGES)
    network(IMAGES)
    fitted = max(abs(output.std().item() - 1) for output in normalised.values())
    assert stale > 0.5
    assert fitted < 0.05


def test_fitting_restores_mode_and_momentum():
    network = quantize_(models.build("resnet20"), 4).train()
    fit_(network, IMAGES)
    assert network.training
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


class Doubled(nn.Module):
    """A value that is added to itself forty times, behind a convolution without BN."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3), nn.ReLU()

    def forward(self, x):
        x = self.second(self.act(self.first(x)))
        for _ in range(40):
            x = x + 0.5 * x
        return self.act(x).mean((2, 3))


def test_normalised_weights_without_bn_are_found():
    torch.manual_seed(0)
    shortcut = models.module("resnet20", "cifar10", 10)
    shortcut.body[4].part2.shortcut.bn = nn.Identity()
    early = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(100, 2))
    found = [layers_without_norm(quantize_(network, 3)) for network in (models.build("resnet20"), shortcut, early, Doubled())]
    assert found == [[], ["body.4.part2.shortcut.conv"], ["3"], ["second"]]
    assert layers_without_norm(quantize_(early, 3, weight_bit=32)) == []


def test_normalised_weights_without_bn_are_told():
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    images = torch.randn(4, 3, 9, 9)
    with pytest.warns(UserWarning, match="no BN follows 2, whose weights") as told:
        fit_(quantize_(bare, 3), images)
    assert len(told) == 1
    early = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(100, 2))
    with pytest.warns(UserWarning, match="no BN follows 3, whose"):
        fit_(quantize_(early, 3), images)
    residual = models.module("resnet20", "cifar10", 10)
    residual.body[4].part2.shortcut.bn = nn.Identity()
    with pytest.warns(UserWarning, match=r"no BN follows body\.4\.part2\.shortcut\.conv, whose"):
        fit_(quantize_(residual, 3), torch.randn(4, 3, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_(quantize_(bare, 3, weight_bit=32), images)
        fit_(quantize_(models.build("resnet20"), 3), torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize("steps", [3, 15])
def test_fitted_threshold_and_clip_beat_their_neighbours(steps):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).abs()
    threshold = best_threshold(x, steps)
    assert all(mse(x, threshold, steps) <= mse(x, threshold * factor, steps) * 1.01 for factor in (0.5, 0.8, 1.25, 2))
    clip = best_clip(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)), APoTWeight(3))
    assert 1 < clip < 3
    assert best_threshold(-x, steps) == 1.0


def test_thresholds_are_fitted_to_all_columns():
    """A sample by stride once saw the left border of each image alone."""
    x = torch.zeros(256, 16, 32, 32)
    x[..., 1:] = torch.rand(256, 16, 32, 31, generator=torch.Generator().manual_seed(3)) * 4
    assert 3.5 < best_threshold(x, 15) < 4.5


def mse(x: torch.Tensor, threshold: float, steps: int) -> float:
    y = ((x / threshold).clamp(0, 1) * steps).round() / steps * threshold
    return (y - x).square().mean().item()


def test_weights_are_quantized_once_inside_and_anew_outside(quantized):
    calls = []
    head = quantized.head
    head.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    inside, outside = [], quantized(IMAGES)
    with quantized_once(quantized):
        inside = [quantized(IMAGES) for _ in range(3)]
    assert len(calls) == 2
    assert all(torch.equal(logits, outside) for logits in inside)
    head.weight.data.neg_()
    assert not torch.equal(quantized(IMAGES), outside)


def test_half_precision_is_quantized_in_float(quantized):
    """In bfloat16, x / θ · T alone would move values across a step."""
    relu = QuantReLU(4, 1.3)
    x = torch.rand(1000, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    y = relu(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, relu(x.detach().float()).bfloat16())
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
