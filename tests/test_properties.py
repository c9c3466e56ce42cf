"""What holds for any network: random small bodies, bits, neurons, delays."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import models
from models import Facts, Network, Recipe
from models.plain import plain_network
from models.resnet import residual_network
from quant import dequantize_, fit_, quantize_, time_steps
from snn_layers import IFNeuron, deploy, to_spiking
from utils.checkpoints.checkpoint import load_network, network_state, save_checkpoint

SIZE = 8  # of the images
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def float_networks(draw) -> Network:
    """Draw a plain or residual network of 2 to 6 units."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    width = st.integers(2, 6)
    if draw(st.booleans()):
        widths = tuple(draw(st.lists(width, min_size=1, max_size=2)))
        stack = residual_network(draw(width), widths, (1,) * len(widths), draw(st.integers(2, 12)))
    else:
        convs = [draw(st.one_of(width, st.tuples(width, st.just(2)))) for _ in range(draw(st.integers(1, 3)))]
        side = SIZE // 2 ** sum(isinstance(conv, tuple) for conv in convs)
        channels = convs[-1][0] if isinstance(convs[-1], tuple) else convs[-1]
        stack = plain_network(convs, [channels * side**2, draw(width)], draw(st.integers(2, 12)))
    for end in (next(module for module in stack.modules() if isinstance(module, nn.Conv2d)), stack.head):
        end.weight.data.view(-1)[0].abs_()  # 8 bits need a positive weight, which a handful may lack
    recipe = draw(st.sampled_from([Recipe(fold=True), Recipe(hidden=False, ends=False, fold=True)]))  # all weights, none
    return Network(stack, Facts("any", "cifar10", stack.head.out_features, recipe))


@st.composite
def quantized_networks(draw) -> Network:
    """Draw a quantized network, fitted to noise, in float64, in eval mode."""
    network = quantize_(draw(float_networks()), draw(st.integers(2, 4)), draw(st.sampled_from([None, 2, 3, 4, 5, 32])))
    return fit_(network, images(16)).eval().double()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


neurons = st.sampled_from(["signed", "unsigned"])


def trains(snn: Network, x: torch.Tensor) -> list[torch.Tensor]:
    """Return each neuron's spikes, [T, B, ...] in {-1, 0, 1}."""
    found = []

    def keep(neuron: IFNeuron, _: object, output: torch.Tensor) -> None:
        found.append((output / neuron.threshold).unflatten(0, (neuron.time_steps, -1)))

    for module in snn.modules():
        if isinstance(module, IFNeuron):
            module.register_forward_hook(keep)
    snn(x)
    return found


@examples
@given(quantized_networks(), neurons)
@torch.no_grad()
def test_full_delay_equals_the_quantized_network(network, neuron):
    x = images(3, seed=1).double()
    steps = time_steps(network.bit)
    torch.testing.assert_close(to_spiking(network, neuron, delay=steps)(x), network(x), rtol=1e-9, atol=1e-9)


@examples
@given(quantized_networks(), neurons, st.data())
@torch.no_grad()
def test_spikes_are_signs_and_counts_stay_between_0_and_the_steps(network, neuron, data):
    full = time_steps(network.bit)
    delay = data.draw(st.integers(0, full))
    steps = full if delay else data.draw(st.integers(1, full))
    snn = to_spiking(network, neuron, delay, steps)
    found = trains(snn, images(3, seed=2).double() * data.draw(st.sampled_from([0.1, 1, 30])))
    assert len(found) == len(list(network.units()))
    for train in found:
        assert len(train) == steps
        torch.testing.assert_close(train, train.round(), rtol=0, atol=1e-9)
        running = train.round().cumsum(0)
        assert running.min() >= 0
        assert running.max() <= steps
        assert train.min().round() >= (-1 if neuron == "signed" else 0)


@examples
@given(quantized_networks(), neurons)
def test_converting_twice_is_refused(network, neuron):
    snn = to_spiking(network, neuron)
    for twice in (lambda: to_spiking(snn), lambda: quantize_(network, 3), lambda: quantize_(snn, 3)):
        with pytest.raises(ValueError, match="already"):
            twice()


@examples
@given(quantized_networks(), neurons, st.data())
@torch.no_grad()
def test_saved_loaded_and_converted_is_converted(network, neuron, data):
    """A builder of this network takes the place of the registry's, which knows no random networks."""
    delay = data.draw(st.integers(0, time_steps(network.bit)))
    blank = fresh(network)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        save_checkpoint(Path(place) / "net.pth", network_state(network))
        patch.setattr(models, "build", lambda *_: blank)
        loaded = load_network(Path(place) / "net.pth", network.arch, network.bit).double()
    assert (loaded.bit, loaded.weight_bit, loaded.num_classes) == (network.bit, network.weight_bit, network.num_classes)
    x = images(2, seed=3).double()
    assert torch.equal(to_spiking(loaded, neuron, delay)(x), to_spiking(network, neuron, delay)(x))


def fresh(network: Network) -> Network:
    """Return a float network of the same shape with other values, as the registry's builder would."""
    blank = dequantize_(copy.deepcopy(network))
    for tensor in blank.state_dict().values():
        tensor.fill_(7)
    return blank


@examples
@given(quantized_networks(), neurons, st.data())
@torch.no_grad()
def test_float32_deployed_fires_the_spikes_of_float64(network, neuron, data):
    """Rounded weights apart: the float64 network computes with float32 values. Spikes on a tie are rare in random numbers."""
    network = network.float()
    delay = data.draw(st.integers(0, time_steps(network.bit)))
    exact = to_spiking(copy.deepcopy(network).double(), neuron, delay)
    x = images(4, seed=4)
    deployed = deploy(to_spiking(network, neuron, delay), compile=False)
    torch.testing.assert_close(deployed(x).double(), exact(x.double()), rtol=1e-4, atol=1e-4)


@examples
@given(float_networks(), st.integers(2, 8), neurons)
def test_names_and_parameters_survive_both_swaps(network, bit, neuron):
    before = dict(network.named_parameters())
    biases = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None}
    quantized = quantize_(network, bit)
    names = quantized.state_dict().keys()
    assert {name for name in before if name not in names} == {f"{name}.bias" for name in biases}
    assert all(name.endswith(("alpha", "threshold")) for name in names if name not in before and "running" not in name
               and "num_batches" not in name)
    snn = to_spiking(quantized, neuron)
    assert snn.state_dict().keys() == names
    assert all(a is b for a, b in zip(snn.parameters(), quantized.parameters(), strict=True))
    restored = dequantize_(quantized)
    assert {name for name, _ in restored.named_parameters()} == before.keys() - {f"{name}.bias" for name in biases}


@examples
@given(quantized_networks(), neurons)
@torch.no_grad()
def test_what_goes_in_stays_as_it_was(network, neuron):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = images(3, seed=5).double()
    kept = x.clone()
    snn = to_spiking(network, neuron, delay=1)
    snn(x)
    deploy(snn, compile=False)(x)
    assert torch.equal(x, kept)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
