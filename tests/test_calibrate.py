"""Calibration of firing rates without training."""

import copy

import torch

from models import Unit
from snn_layers import calibrate_rates_, to_spiking

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def mean_rates(network) -> dict[str, torch.Tensor]:
    """Return each unit's mean output per channel."""
    rates = {}
    hooks = [unit.register_forward_hook(lambda _, __, y, name=name: rates.update({name: y.transpose(0, 1).flatten(1).mean(1)}))
             for name, unit in network.units()]
    network(IMAGES)
    for hook in hooks:
        hook.remove()
    return rates


@torch.no_grad()
def test_mean_rates_come_closer_in_every_unit(quantized):
    target = mean_rates(quantized)
    snn = to_spiking(quantized, "unsigned")
    before = mean_rates(snn)
    calibrate_rates_(snn, quantized, IMAGES)
    after = mean_rates(snn)
    errors = [[(rates[name] - target[name]).abs().sum().item() for name in list(target)[1:]] for rates in (before, after)]
    assert sum(new < 0.5 * old for old, new in zip(*errors, strict=True)) >= 15
    first = next(iter(target))
    assert torch.equal(before[first], after[first])


@torch.no_grad()
def test_an_early_readout_is_calibrated_to_the_same_activations(quantized):
    target, snn = mean_rates(quantized), to_spiking(quantized, "unsigned", steps=2)
    before = mean_rates(snn)
    after = mean_rates(calibrate_rates_(snn, quantized, IMAGES))
    errors = [sum((rates[name] - target[name]).abs().sum().item() for name in list(target)[1:]) for rates in (before, after)]
    assert errors[1] < 0.5 * errors[0]


@torch.no_grad()
def test_the_ann_stays_as_it_is_in_training_mode_too(quantized):
    ann = quantized.train()
    before = copy.deepcopy(ann.state_dict())
    expected = calibrate_rates_(to_spiking(ann), copy.deepcopy(ann).eval(), IMAGES).state_dict()
    found = calibrate_rates_(to_spiking(ann), ann, IMAGES).state_dict()
    assert ann.training
    assert all(torch.equal(tensor, ann.state_dict()[name]) for name, tensor in before.items())
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@torch.no_grad()
def test_chunks_add_up_to_the_whole(quantized, monkeypatch):
    biases = []
    for chunk in (8, 3):
        monkeypatch.setattr("snn_layers.calibrate.CHUNK", chunk)
        snn = calibrate_rates_(to_spiking(quantized), quantized, IMAGES)
        biases.append(torch.cat([unit.bn.bias for unit in snn.modules() if isinstance(unit, Unit)]))
    torch.testing.assert_close(biases[0], biases[1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_only_bn_biases_change_and_not_those_of_the_ann(quantized):
    before = copy.deepcopy(quantized.state_dict())
    snn = calibrate_rates_(to_spiking(quantized), quantized, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())
    changed = {name for name, value in snn.state_dict().items() if not torch.equal(value, before[name])}
    first = next(name for name, _ in snn.units())
    assert changed == {f"{name}.bn.bias" for name, _ in snn.units() if name != first}


@torch.no_grad()
def test_nothing_changes_where_nothing_is_lost(quantized):
    """With delay T the rates are the activations already, so that the shifts are zero up to rounding ties."""
    quantized.double()
    snn = calibrate_rates_(to_spiking(quantized, delay=3), quantized, IMAGES.double())
    torch.testing.assert_close(snn(IMAGES.double()), quantized(IMAGES.double()), rtol=1e-6, atol=1e-6)
