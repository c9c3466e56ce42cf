"""A spiking network with another library's neurons fires our spikes."""

import sys

import pytest
import torch
from torch import nn

from snn_layers import IFNeuron, exchange, spikes, to_spiking
from snn_layers.export.exchange import LIBRARIES, LibraryNeuron


@pytest.fixture(params=sorted(LIBRARIES))
def library(request) -> str:
    pytest.importorskip(LIBRARIES[request.param].package, reason=f"{request.param} is not installed")
    return request.param


def test_every_spike_is_ours(small, library):
    small.double()
    snn = to_spiking(small, "unsigned")
    images = torch.randn(8, 3, 9, 7, dtype=torch.float64)
    ours, theirs = spikes(snn, images), spikes(exchange(snn, library), images)
    assert ours.keys() == theirs.keys()
    for name, train in ours.items():
        assert 0 < train.mean() < 1
        assert torch.equal(train, theirs[name])
    assert torch.equal(snn(images), exchange(snn, library)(images))


@pytest.mark.parametrize("start", [0, 0.5])
@pytest.mark.parametrize("time_steps", [3, 15])
def test_ties_and_large_currents_fire_as_ours(library, time_steps, start):
    # Multiples of θ/8 with θ a power of two: sums are exact, and a membrane often is θ itself, or several θ.
    torch.manual_seed(0)
    neuron = IFNeuron(nn.Parameter(torch.tensor(0.5)), time_steps, kind=False, start=start)
    current = torch.randint(-4, 12, (time_steps * 50, 4)) / 16
    membrane = neuron.currents(current).cumsum(0) + 0.5 * start
    assert (membrane % 0.5 == 0).float().mean() > 0.1
    (kind, package) = LIBRARIES[library], pytest.importorskip(LIBRARIES[library].package)
    assert torch.equal(kind(neuron, package).spike_train(current), neuron.spike_train(current))


def test_each_pass_starts_anew_with_any_batch(small, library):
    network = exchange(to_spiking(small, "unsigned"), library)
    images = torch.randn(6, 3, 9, 7)
    first = network(images)
    network(images[:2])
    assert torch.equal(network(images), first)
    assert torch.allclose(network(images[:2]), first[:2], rtol=1e-5, atol=1e-6)


def test_the_neurons_are_the_library_s_own_and_the_parameters_ours(small, library):
    snn = to_spiking(small, "unsigned")
    network = exchange(snn, library)
    for _, neuron in network.units():
        assert isinstance(neuron, LibraryNeuron)
        assert type(neuron.module).__module__.partition(".")[0] == library
    mine, theirs = dict(snn.named_parameters()), dict(network.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in mine.items())


def test_what_a_library_lacks_is_refused(small):
    with pytest.raises(ValueError, match="signed neurons, which sinabs lacks"):
        exchange(to_spiking(small), "sinabs")
    with pytest.raises(ValueError, match="a delay of 1, which snntorch lacks"):
        exchange(to_spiking(small, "unsigned", delay=1), "snntorch")
    with pytest.raises(ValueError, match="unknown library 'norse': choose spikingjelly, snntorch, sinabs"):
        exchange(to_spiking(small, "unsigned"), "norse")
    with pytest.raises(ValueError, match="does not spike"):
        exchange(small, "sinabs")


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_a_missing_package_is_named(small, name, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=f"the package {name} is not installed: pip install {name}$"):
        exchange(to_spiking(small, "unsigned"), name)


def test_what_a_package_needs_is_named(small, monkeypatch, tmp_path):
    (tmp_path / "sinabs.py").write_text("import spike_toolbox")
    for module in [module for module in sys.modules if module.partition(".")[0] == "sinabs"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="sinabs, which needs spike_toolbox, is not installed: pip install spike_tool"):
        exchange(to_spiking(small, "unsigned"), "sinabs")
