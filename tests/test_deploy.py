"""Deployed networks: the spikes of a float64 run, from integers."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from models import INPUT, Network, Unit
from quant import APoTWeight, QuantConv2d, fit_, quantize_, requantize_
from quant.compiled import Compiled
from snn_layers import LayerMonitor, deploy, integrate_and_fire, to_spiking
from snn_layers.deployment.fused import fire, neuron_constants
from snn_layers.deployment.units import share_current_
from snn_layers.native import calls
from utils.checkpoints.checkpoint import load_network
from utils.data.cifar import TensorLoader, load_images

NOISE = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(11))


def spike_trains(network, images) -> list[torch.Tensor]:
    """Return what every unit fired, [T·B, ...] in {-1, 0, 1}."""
    trains, hooks = {}, []
    for name, neuron in network.units():
        def record(_, __, output, name=name, neuron=neuron):
            fired = neuron.decode(output) if hasattr(neuron, "decode") else output
            trains[name] = (fired.double() / float(neuron.threshold)).round().to(torch.int8)

        hooks.append(neuron.register_forward_hook(record))
    network(images)
    for hook in hooks:
        hook.remove()
    return list(trains.values())


def differing_spikes(snn, images, **kind) -> int:
    """Return how many spikes of the deployed network differ from those of a float64 run."""
    with torch.no_grad():
        expected = spike_trains(copy.deepcopy(snn).double(), images.double())
        found = spike_trains(deploy(snn, chunk=len(images), compile=False, **kind), images)
    assert len(found) == len(expected) >= 5
    assert all(train.abs().sum() > 0 for train in expected[:3])
    return sum((a != b).sum().item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize(("neuron", "delay"), [("signed", 0), ("unsigned", 0), ("signed", 1), ("unsigned", 3)])
def test_every_spike_is_that_of_a_float64_run(quantized, integer, neuron, delay):
    assert differing_spikes(to_spiking(quantized, neuron, delay), NOISE, integer=integer) == 0


@pytest.mark.parametrize("bit", [2, 3, 4])
def test_every_spike_on_real_images(bit, find):
    test_set = load_images("cifar10", find("data/cifar-10-batches-bin").parent, train=False)
    # At 3 bits the flat background of image 5651 lies so close to the threshold that float32 weights would move it.
    part = replace(test_set, images=test_set.images[5648:5656], labels=test_set.labels[5648:5656])
    images = TensorLoader(part, 8, augment=False).first(8)
    ann = load_network(f"result/published/resnet20_{bit}bit.pth.tar")
    assert differing_spikes(to_spiking(ann), images, integer=True) == 0
    assert differing_spikes(to_spiking(ann, "unsigned"), images, integer=False) == 0


@torch.no_grad()
def test_linear_units_and_vanishing_and_negative_scales():
    torch.manual_seed(1)
    network = fit_(quantize_(models.build("alex"), 3), NOISE).eval()
    for unit in (module for module in network.modules() if isinstance(module, Unit)):
        unit.bn.weight[:6] = torch.tensor([0.0, -0.5, -1.0, -2.0, 0.0, 1.0])
        unit.bn.bias.add_(0.3)
    for integer in (False, True):
        assert differing_spikes(to_spiking(network), NOISE[:2], integer=integer) == 0


@torch.no_grad()
def test_logits_are_those_of_the_network_whatever_the_chunk(quantized):
    snn = to_spiking(quantized)
    expected = copy.deepcopy(snn).double()(NOISE.double()).float()
    for chunk in (None, 1, 2, 5):
        for integer in (False, True):
            torch.testing.assert_close(deploy(snn, integer, chunk, compile=False)(NOISE), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_a_readout_after_some_steps_is_the_network_that_runs_as_many(quantized, neuron):
    snn = to_spiking(quantized, neuron)
    deployed = [deploy(snn, integer, chunk=2, compile=False) for integer in (False, True)]
    for network in (snn, *deployed):
        *early, full = network.readouts(NOISE)
        torch.testing.assert_close(full, network(NOISE), rtol=1e-5, atol=1e-5)
        for steps, logits in enumerate(early, start=1):
            torch.testing.assert_close(logits, to_spiking(quantized, neuron, steps=steps)(NOISE), rtol=1e-4, atol=1e-5)
    for network in deployed:
        spikes, = network.advance({INPUT: NOISE}).values()
        *_, (_, last) = network.units()
        assert torch.equal(last.rates(spikes)[-1], last.rate(spikes))


@torch.no_grad()
@pytest.mark.parametrize("integer", [False, True])
def test_a_pass_can_start_at_any_unit(quantized, integer):
    network = deploy(to_spiking(quantized), integer, compile=False)
    expected = network(NOISE)
    for index in range(len(network.index)):
        torch.testing.assert_close(network.finish(network.advance({INPUT: NOISE}, 0, index), index), expected)


@torch.no_grad()
def test_an_update_is_a_new_deployment_of_one_unit(quantized):
    snn = to_spiking(quantized)
    network = deploy(snn, compile=False)
    snn.body[2].part2.bn.bias += 0.3
    snn.body[2].part2.conv.weight.normal_()
    before = network(NOISE)
    network.update_(snn, snn.graph.units[4])
    assert not torch.allclose(network(NOISE), before)
    assert torch.equal(network(NOISE), deploy(snn, compile=False)(NOISE))


@torch.no_grad()
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("geometry", [{"groups": 4}, {"groups": 16}, {"dilation": 2, "padding": 2}, {"padding_mode": "reflect"},
                                      {"padding_mode": "circular", "dilation": (2, 1), "padding": (2, 1)}, {"padding": "same"},
                                      {"padding_mode": "replicate"}, {"padding": "same", "kernel_size": (4, 2)},
                                      {"padding": 0, "kernel_size": 1}], ids=str)
def test_a_convolution_keeps_groups_dilation_and_padding(small, integer, geometry):
    for part in (small.body[0], small.body[2].part1, small.body[2].part2):
        old = part.conv
        groups = geometry.get("groups", 1) if old.in_channels == 16 else 1
        options = {"kernel_size": 3, "padding": 1, "bias": False} | geometry | {"groups": groups}
        part.conv = QuantConv2d.from_float(nn.Conv2d(old.in_channels, old.out_channels, **options), old.weight_quantizer)
    images = NOISE[..., :12, :13]
    fit_(small, images)
    for delay in (0, 1):
        assert differing_spikes(to_spiking(small, delay=delay), images, integer=integer) == 0


@torch.no_grad()
def test_float_hidden_weights_have_a_float_path_only():
    network = fit_(quantize_(models.build("resnet20"), 2, weight_bit=32), NOISE).eval()
    snn = to_spiking(network)
    torch.testing.assert_close(deploy(snn, compile=False)(NOISE), snn(NOISE), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="integer path needs hidden weights of 2 to 6 APoT bits"):
        deploy(snn, integer=True)
    with pytest.raises(ValueError, match="a float network has no spikes"):
        deploy(models.build("resnet20"))


@torch.no_grad()
@pytest.mark.parametrize(("bit", "integer"), [(2, True), (4, None), (3, False), (8, None)])
def test_a_quantized_network_is_one_of_a_single_step_with_the_activations_of_a_float64_run(small, bit, integer):
    images, found = NOISE[..., :12, :13], {}
    ann = fit_(requantize_(small, bit, min(bit, 5)), images).eval()
    networks = deploy(ann, integer, compile=False), copy.deepcopy(ann).double()
    for index, network in enumerate(networks):
        for name, neuron in network.units():
            neuron.register_forward_hook(
                lambda neuron, _, y, key=(index, name): found.update({key: y if key[0] else neuron.decode(y)}))
    torch.testing.assert_close(networks[0](images), networks[1](images.double()).float(), rtol=1e-4, atol=1e-5)
    for name, relu in networks[1].units():
        levels = [(found[index, name] / relu.threshold * relu.time_steps).round() for index in (0, 1)]
        assert torch.equal(*levels)
        assert levels[0].max() > 1


@torch.no_grad()
def test_an_ann_and_its_snn_compute_the_first_current_once(small, operators):
    snn, images = to_spiking(small), [NOISE[..., :12, :13], NOISE[..., 5:, 5:]]
    expected = [(deploy(small, compile=False)(x), deploy(snn, compile=False)(x)) for x in images]
    pair = deploy(small, chunk=5, compile=False), deploy(snn, chunk=5, compile=False)
    share_current_(pair[0].body[0], pair[1].body[0])
    with operators() as counted:
        found = [tuple(network(x) for network in pair) for x in images]
    assert counted.calls.count("conv2d") == len(images)  # the others are of bytes
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    snn.body[0].bn.bias += 0.1
    other = deploy(snn, compile=False)
    share_current_(pair[0].body[0], other.body[0])  # another function of the images
    assert torch.equal(other(images[0]), deploy(snn, compile=False)(images[0]))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.sampled_from([1, 3, 7]), signed=st.booleans(), delay=st.integers(0, 3),
       start=st.sampled_from([0, 0.5]))
def test_fire_is_integrate_and_fire_on_the_current_it_stands_for(seed, steps, signed, delay, start):
    draw = torch.Generator().manual_seed(seed)
    delay = min(delay, steps)
    accumulator = torch.randint(-40, 60, (steps, 50, 4), generator=draw).float()
    second = torch.randint(-1, 2, (steps, 50, 4), generator=draw).float()
    scale, bias, factor = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    theta = torch.full((4,), 0.1 + 8 * torch.rand((), generator=draw).item(), dtype=torch.float64)
    constants = neuron_constants(scale + 0.01, theta, bias - 0.5, factor, torch.full((4,), 60 + 1 / 0.01), steps)
    current = (scale + 0.01) * accumulator + bias - 0.5 + factor * second
    expected = integrate_and_fire(current, theta[0], signed, delay, start)
    found = fire(accumulator, second, constants, steps, signed, delay, 1, torch.uint8, start)
    assert torch.equal(found.to(torch.int8) - 1, expected.to(torch.int8))


def test_the_constants_add_up_without_rounding():
    draw = torch.Generator().manual_seed(0)
    scale, bias, factor = 0.003 + torch.rand(3, 64, generator=draw, dtype=torch.float64)
    theta = torch.full_like(scale, 1.7)
    constants = neuron_constants(scale, theta, bias, factor, 1152 + 400, 15)
    expected = torch.stack((theta, bias, factor, torch.full_like(scale, -1e-3))) / scale
    torch.testing.assert_close(constants.double().sum(1), expected, rtol=0, atol=1e-10)
    high = constants[:, 0]
    total = torch.zeros(64)
    exact = torch.zeros(64, dtype=torch.float64)
    for step in range(15):  # a membrane in float32 beside one in float64, from high parts and integers
        accumulator = torch.randint(-1152, 1153, (64,), generator=draw)
        total = total + (accumulator + high[1]) - (step % 2) * high[0]
        exact = exact + accumulator + high[1].double() - (step % 2) * high[0].double()
    assert torch.equal(total.double(), exact)


def test_a_channel_whose_gain_has_decayed_leaves_the_others_exact():
    scale, others = torch.rand(4, 8, dtype=torch.float64) + 0.01, torch.arange(8) != 3
    dead = scale[0].clone()
    dead[3] = 1e-9
    constants = [neuron_constants(gain, *scale[1:], torch.full((8,), 1000.0), 7) for gain in (scale[0], dead)]
    assert torch.equal(constants[0][..., others], constants[1][..., others])
    assert not torch.equal(*constants)


def test_one_convolution_a_layer_and_no_quantization_in_a_pass(quantized, operators):
    for integer, operator in ((False, "conv2d"), (True, "qconv2d_pointwise")):
        network = deploy(to_spiking(quantized), integer, chunk=5, compile=False)
        with operators() as counted:
            network(NOISE)
        hidden, shortcuts = 18, 2
        assert counted.calls.count(operator) == hidden + shortcuts + (not integer)  # the first one is always float64
        assert "bucketize" not in counted.calls
        assert "native_batch_norm" not in counted.calls


def test_weights_are_quantized_once(quantized, monkeypatch):
    calls = []
    forward = APoTWeight.forward
    monkeypatch.setattr(APoTWeight, "forward", lambda self, weight: calls.append(1) or forward(self, weight))
    network = deploy(to_spiking(quantized), compile=False)
    network(NOISE)
    network(NOISE)
    assert len(calls) == 20


def test_a_deployed_network_is_a_snapshot(quantized):
    snn = to_spiking(quantized)
    network = deploy(snn, compile=False)
    before = network(NOISE)
    with torch.no_grad():
        for parameter in snn.parameters():
            parameter.mul_(1.5)
    assert torch.equal(network(NOISE), before)


@torch.no_grad()
def test_layer_statistics_of_a_deployed_network(quantized):
    rows = []
    snn = to_spiking(quantized)
    fast, ann = deploy(snn, True, chunk=2, compile=False), deploy(quantized, compile=False)
    for first, network in ((quantized, snn), (quantized, fast), (ann, fast), (ann, deploy(snn, False, chunk=3, compile=False))):
        with LayerMonitor(first, network) as monitor:
            first(NOISE)
            network(NOISE)
        rows.append(monitor.statistics())
    for plain, *others in zip(*rows, strict=True):
        assert {row.name for row in others} == {plain.name}
        for value in ("threshold", "firing_rate", "negative_share", "error"):
            assert [getattr(row, value) for row in others] == pytest.approx([getattr(plain, value)] * 3, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
@pytest.mark.parametrize("integer", [False, True])
def test_the_neuron_in_cpp_fires_the_same(quantized, neuron, integer, monkeypatch):
    """On a whole network, whose accumulators and residuals are of several types."""
    network = deploy(to_spiking(quantized, neuron), integer, compile=False)
    logits, rates = network(NOISE), network.firing_rates(NOISE)
    monkeypatch.setattr(calls, "library", lambda source: None)
    assert torch.equal(network(NOISE), logits)
    assert all(torch.equal(rate, rates[name]) for name, rate in network.firing_rates(NOISE).items())


@pytest.mark.slow
def test_a_function_with_too_many_versions_goes_on_uncompiled():
    def shifted(x: torch.Tensor, signs: tuple[bool, ...]) -> torch.Tensor:
        for up in signs:
            x = x + 1 if up else x - 1
        return x

    fused = Compiled(shifted, limit=1)
    assert fused(torch.zeros(3), (True,)).tolist() == [1, 1, 1]
    with pytest.warns(UserWarning, match="shifted is not compiled"):
        assert fused(torch.zeros(3), (False, False)).tolist() == [-2, -2, -2]


class Wide(nn.Module):
    """A linear layer of many inputs."""

    def __init__(self, width):
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(3, width), nn.Linear(width, 4), nn.Linear(4, 5)

    def forward(self, x):
        return self.last(torch.relu(self.wide(torch.relu(self.first(x.flatten(1))))))


@pytest.mark.parametrize(("width", "exact_units"), [(1_000, []), (40_000, ["activation_2"])])
@torch.no_grad()
def test_sums_that_float32_cannot_hold_run_in_float64(width, exact_units):
    torch.manual_seed(0)
    ann, x = quantize_(Network(Wide(width)).eval(), 7, 6), torch.rand(2, 3, 1, 1)
    deployed = deploy(ann, compile=False)
    assert deployed.exact_units() == exact_units
    torch.testing.assert_close(deployed(x), ann.double()(x.double()).float())
