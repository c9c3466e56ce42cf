"""The second swap, to_spiking, and the layer statistics."""

import pytest
import torch

import models
from models import Unit
from quant import QuantReLU, quantize_
from snn_layers import IFNeuron, LayerMonitor, deploy, integrate_and_fire, latency, layer_table, to_spiking

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_parameters_are_shared_and_keys_survive(quantized):
    spiking = to_spiking(quantized)
    ours, theirs = dict(spiking.named_parameters()), dict(quantized.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert spiking.state_dict().keys() == quantized.state_dict().keys()
    assert any(isinstance(m, QuantReLU) for m in quantized.modules())
    assert not any(isinstance(m, QuantReLU) for m in spiking.modules())


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_full_delay_equals_the_quantized_network(quantized, neuron):
    ann = quantized.double()
    spiking = to_spiking(ann, neuron, delay=3)
    torch.testing.assert_close(spiking(IMAGES), ann(IMAGES), rtol=1e-9, atol=1e-9)
    assert to_spiking(ann, neuron)(IMAGES).sub(ann(IMAGES)).abs().max() > 1e-3


def test_delay_closes_the_distance_to_the_network(quantized):
    ann = quantized.double()
    errors = [(to_spiking(ann, "signed", d)(IMAGES) - ann(IMAGES)).abs().mean().item() for d in (0, 1, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_latency_counts_the_layers_that_wait(quantized):
    assert latency(to_spiking(quantized)) == 3
    assert latency(to_spiking(quantized, delay=2)) == 3 + 2 * 18  # 19 neurons, the first sees a constant current


def current_of(unit, x, residual):
    """Return what reaches a unit's activation."""
    current = unit.bn(unit.conv(x))
    return current if residual is None else current + (residual if unit.shortcut is None else unit.shortcut(residual))


def test_a_network_agrees_with_its_layers_step_by_step(quantized):
    """Run the spiking network one time step at a time, from the equation, without the folded batch."""
    snn, ann = to_spiking(quantized.double()), quantized
    x = block = [IMAGES] * 3  # the image is a constant current
    for name, unit in ann.named_modules():
        if not isinstance(unit, Unit):
            continue
        residual = block if name.endswith("part2") else [None] * 3
        block = block if name.endswith("part2") else x
        current = torch.stack([current_of(unit, x[t], residual[t]) for t in range(3)])
        x = integrate_and_fire(current, unit.activation.threshold) * unit.activation.threshold
    logits = torch.stack([ann.head(ann.pool(step)) for step in x]).mean(0)
    torch.testing.assert_close(snn(IMAGES), logits)


def test_what_cannot_spike_is_refused(quantized):
    with pytest.raises(ValueError, match="spikes already"):
        to_spiking(to_spiking(quantized))
    with pytest.raises(ValueError, match="float network"):
        to_spiking(models.build("resnet20"))
    with pytest.raises(ValueError, match="unknown neuron 'soft'"):
        to_spiking(quantized, "soft")
    with pytest.raises(ValueError, match="delay is 4"):
        to_spiking(quantized, delay=4)
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"steps is {steps}: a 2-bit network runs 1 to T = 3"):
            to_spiking(quantized, steps=steps)
    with pytest.raises(ValueError, match=r"delay is 1 and steps 2: .* run all 3 steps"):
        to_spiking(quantized, delay=1, steps=2)
    with pytest.raises(ValueError, match="already"):
        quantize_(to_spiking(quantized), 2)


@torch.no_grad()
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_an_early_readout_is_the_first_steps_of_the_same_network(quantized, neuron):
    images, trains = IMAGES.float(), {}
    for steps in (3, 2, 1):
        snn = to_spiking(quantized, neuron, steps=steps)
        for name, unit in snn.units():
            unit.register_forward_hook(lambda _, __, y, key=(steps, name): trains.update({key: y.unflatten(0, (key[0], -1))}))
        torch.testing.assert_close(deploy(snn, compile=False)(images), snn(images), rtol=1e-4, atol=1e-4)
        assert latency(snn) == steps
    for (steps, name), train in trains.items():
        assert torch.equal(train, trains[3, name][:steps])


def test_the_image_batch_is_never_changed(quantized):
    images = IMAGES.float()
    kept = images.clone()
    to_spiking(quantized)(images)
    assert torch.equal(images, kept)


def test_only_the_first_neuron_encodes(quantized):
    neurons = [m for m in to_spiking(quantized, delay=1).modules() if isinstance(m, IFNeuron)]
    assert [n.encodes for n in neurons] == [True] + [False] * 18
    assert [n.delay for n in neurons] == [0] + [1] * 18


def test_layer_statistics_count_spikes_and_errors(quantized):
    """The same numbers come from the recorded outputs of each unit, by boolean masks."""
    ann, snn = quantized, to_spiking(quantized)
    outputs = {}
    for kind, network in (("ann", ann), ("snn", snn)):
        for name, unit in network.units():
            unit.register_forward_hook(lambda _, __, y, key=(kind, name): outputs.update({key: y.clone()}))
    images = IMAGES.float()
    with LayerMonitor(ann, snn) as monitor:
        ann(images)
        snn(images)
    rows = monitor.statistics()
    for row in rows:
        spikes = outputs["snn", row.name] / row.threshold
        assert row.firing_rate == pytest.approx((spikes.abs() > 0.5).float().mean().item(), rel=1e-4)
        assert row.negative_share == pytest.approx(((spikes < -0.5).sum() / (spikes.abs() > 0.5).sum()).item(), rel=1e-4, abs=1e-6)
        error = (outputs["snn", row.name].unflatten(0, (3, -1)).mean(0) - outputs["ann", row.name]).abs().mean().item()
        assert row.error == pytest.approx(error, rel=1e-4, abs=1e-7)
    assert rows[0].error < 1e-6  # a constant current is rounded like the activation
    assert layer_table(rows).count("\n") == len(rows)
