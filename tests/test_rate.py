"""Spikes forward, rates backward."""

import copy

import pytest
import torch
import torch.nn.functional as F

import models
from quant import fit_, quantize_
from snn_layers import RateNetwork, deploy, rate_logits, to_spiking
from snn_layers.tuning.rate import firing_rates

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_the_values_are_those_of_the_spiking_network(quantized, neuron):
    snn = to_spiking(quantized.double(), neuron)
    torch.testing.assert_close(rate_logits(snn, IMAGES, firing_rates(snn, IMAGES)), snn(IMAGES), rtol=1e-9, atol=1e-9)


def test_at_full_delay_the_gradient_is_that_of_the_quantized_network(quantized):
    """With delay T the spikes are the quantized activations, so both networks are one function."""
    ann = quantized.double()
    grads = []
    for network in (ann, RateNetwork(to_spiking(ann, delay=3), deployed=False)):
        F.cross_entropy(network(IMAGES), torch.arange(4)).backward()
        grads.append({name: p.grad for name, p in getattr(network, "snn", network).named_parameters() if "threshold" not in name})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-6, atol=1e-9, msg=name)


def test_statistics_and_thresholds_stay(quantized):
    snn = to_spiking(quantized.double())
    before = copy.deepcopy(snn.state_dict())
    network = RateNetwork(snn, deployed=False).train()
    assert not snn.training
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(network(IMAGES), torch.arange(4)).backward()
    optimizer.step()
    changed = {name for name, value in snn.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rsplit(".", 1)[-1] for name in changed} == {"weight", "bias", "alpha"}
    assert {name for name, _ in snn.named_parameters() if "threshold" not in name} == changed
    assert all(torch.equal(value, quantized.state_dict()[name]) for name, value in before.items())


@torch.no_grad()
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_deployed_rates_are_those_of_the_plain_layers(quantized, neuron):
    snn = to_spiking(quantized, neuron)
    expected = firing_rates(copy.deepcopy(snn).double(), IMAGES)
    for chunk in (4, 3):
        found = deploy(snn, chunk=chunk, compile=False).firing_rates(IMAGES.float())
        assert found.keys() == expected.keys()
        for name, rate in found.items():
            torch.testing.assert_close(rate.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_both_ways_give_the_same_gradients(quantized):
    grads = []
    for deployed in (False, True):
        network = RateNetwork(to_spiking(quantized), deployed, compile=False)
        F.cross_entropy(network(IMAGES.float()), torch.arange(4)).backward()
        grads.append(network.snn.body[5].part1.conv.weight.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_counts_of_many_steps_do_not_overflow_a_byte():
    """255 spikes a neuron, each stored as 2."""
    torch.manual_seed(0)
    network = quantize_(models.build("resnet20"), 8, weight_bit=3)
    snn = to_spiking(fit_(network, torch.randn(8, 3, 32, 32)))
    # Counts in float32, which do not overflow; over 255 steps a float64 run may part from both at a tie.
    expected, rates = (deploy(snn, integer=integer, compile=False).firing_rates(IMAGES[:1].float()) for integer in (False, True))
    for name, rate in rates.items():
        assert torch.equal(rate, expected[name])
