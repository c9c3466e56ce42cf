"""Layer-wise tuning."""

import copy
from dataclasses import replace

import pytest
import torch

from models import INPUT
from snn_layers import FinetuneConfig, deploy, finetune, stored_bytes, to_spiking
from snn_layers.deployment.units import SpikingUnit
from snn_layers.stored import advance, spikes_as_bytes, unpacked
from snn_layers.tuning.layerwise import unit_loss
from snn_layers.tuning.unit_data import UnitData


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(2)]


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def changed(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_forced_tuning_lowers_the_error_and_trains_what_it_should(quantized, batches):
    snn, before = to_spiking(quantized), state_of(quantized)
    results = finetune(snn, quantized, batches, batches, FinetuneConfig(epochs=4, lr=0.05, force=True))
    assert [result.kept_epochs for result in results] == [4] * 18
    assert sum(result.losses[-1] < result.losses[0] for result in results) > 9
    assert sum(result.losses[-1] for result in results) < sum(result.losses[0] for result in results)
    touched = changed(snn, before)
    first = next(name for name, _ in snn.units())
    assert not any(name.startswith((first + ".", "head.")) for name in touched)  # never the first unit, never the head
    assert not any("threshold" in name or "running" in name or "num_batches" in name for name in touched)
    assert {name.rsplit(".", 1)[-1] for name in touched} == {"weight", "bias", "alpha"}
    assert any("shortcut" in name for name in touched)


def test_the_ann_stays_as_it_was(quantized, batches):
    before = state_of(quantized)
    finetune(to_spiking(quantized), quantized, batches, batches, FinetuneConfig(lr=0.1, force=True))
    assert changed(quantized, before) == set()
    assert all(p.requires_grad for p in quantized.parameters())


def test_what_does_not_raise_the_accuracy_is_taken_back(quantized, batches):
    """The published revert aliased live tensors on a CPU, so that it kept everything."""
    snn, before = to_spiking(quantized), state_of(quantized)
    hopeless = [(images, labels + 100) for images, labels in batches]  # accuracy 0, before and after
    results = finetune(snn, quantized, batches, hopeless, FinetuneConfig(epochs=2, lr=0.1))
    assert [result.kept_epochs for result in results] == [0] * 18
    assert changed(snn, before) == set()


def test_a_revert_restores_the_momentum_too(quantized, batches, monkeypatch):
    """Kept, rejected, rejected: both rejected epochs must have started from the same optimizer state."""
    accuracies, loaded = iter([0.0, 2.0, 1.0, 1.0]), []
    monkeypatch.setattr(UnitData, "accuracy", lambda *_: next(accuracies))
    load = torch.optim.SGD.load_state_dict

    def record(self, state):
        loaded.append([entry["momentum_buffer"].clone() for entry in state["state"].values()])
        load(self, state)

    monkeypatch.setattr(torch.optim.SGD, "load_state_dict", record)
    results = finetune(to_spiking(quantized), quantized, batches, batches, FinetuneConfig(epochs=3, lr=0.1), first=18)
    assert results[0].kept_epochs == 1
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True))


def test_each_epoch_is_run(quantized, batches):
    passes = []

    def bar(items, name):
        passes.append(name)
        return items

    finetune(to_spiking(quantized), quantized, batches, batches, FinetuneConfig(epochs=3, force=True), first=18, bar=bar)
    assert sum("epoch" in name for name in passes) == 3


@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_kept_states_equal_a_run_from_the_images(small, batches, neuron):
    """In float64 the plain layers of --online fire the same spikes as the deployment that advances the kept values."""
    config = FinetuneConfig(epochs=2, lr=0.05, force=True)
    batches = [(images.double(), labels) for images, labels in batches]
    snns = []
    for online in (False, True):
        snns.append(to_spiking(small.double(), neuron))
        finetune(snns[-1], small, batches, batches, replace(config, online=online))
    for (name, a), b in zip(snns[0].state_dict().items(), snns[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_kept_states_run_each_unit_a_fixed_number_of_times(quantized, batches, monkeypatch):
    """O(L): a unit runs once to be tuned and once when the values advance past it."""
    runs, forward = [], SpikingUnit.forward
    monkeypatch.setattr(SpikingUnit, "forward", lambda self, *args: (runs.append(self), forward(self, *args))[1])
    finetune(to_spiking(quantized), quantized, batches, [], FinetuneConfig(force=True))
    assert len(runs) == len(batches) * (2 * 18 - 1)


def test_going_on_after_an_interruption_equals_an_unbroken_run(small, batches):
    config = FinetuneConfig(lr=0.05, force=True)
    whole = to_spiking(small)
    finetune(whole, small, batches, batches, config)

    class Interruption(Exception):  # noqa: N818
        pass

    def stop(index, _):
        if index == 2:
            raise Interruption

    broken = to_spiking(small)
    with pytest.raises(Interruption):
        finetune(broken, small, batches, batches, config, on_unit=stop)
    resumed = to_spiking(copy.deepcopy(small))
    resumed.load_state_dict(state_of(broken))
    finetune(resumed, small, batches, batches, config, first=3)
    assert changed(resumed, state_of(whole)) == set()


def test_packed_values_are_exact(quantized, batches):
    packed = expected = {INPUT: batches[0][0]}
    with torch.no_grad():
        for unit in quantized.graph.units[:4]:
            packed, expected = advance(quantized, unit, packed), quantized.advance(unit, expected)
            assert packed.keys() == expected.keys() - {INPUT}
            for name, value in packed.items():
                assert value.bytes.element_size() == 1
                torch.testing.assert_close(unpacked(value), expected[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("integer", [False, True])
def test_kept_spikes_take_one_byte_and_go_on_as_they_were(quantized, batches, integer):
    deployed, images = deploy(to_spiking(quantized), integer, compile=False), batches[0][0]
    expected = deployed.firing_rates(images)
    values = {INPUT: images}
    for index, name in enumerate(deployed.index):
        values = spikes_as_bytes(deployed.advance(values, index, index + 1), deployed.index)
        assert all(value.element_size() == 1 for value in values.values())
        assert torch.equal(deployed.mean(name, values[name]), expected[name])
    torch.testing.assert_close(deployed.finish(values, len(deployed.index)), deployed(images))


def test_stored_bytes_is_what_the_widest_cache_takes(quantized, batches):
    images = batches[0][0][:1]
    snn = to_spiking(quantized)
    # Spikes of T = 3 steps and a residual before a block's second unit, the ANN's activations after it.
    assert stored_bytes(snn, quantized, images) == (3 * 2 + 1) * 16 * 16 * 16


def test_the_loss_is_that_of_the_spikes_and_the_gradient_that_of_the_unit(quantized, batches):
    snn, images = to_spiking(quantized), batches[0][0]
    first, unit = snn.graph.units[:2]
    with torch.no_grad():
        values = snn.advance(first, {INPUT: images})
        rate = snn.mean(unit.name, snn.advance(unit, values)[unit.name])
        target = torch.rand_like(rate)
        means = {name: snn.mean(name, value) for name, value in values.items()}
    loss = unit_loss(snn, unit, means, rate, target)
    assert loss.item() == pytest.approx((rate - target).square().mean().item(), rel=1e-5)
    loss.backward()
    block = quantized.body[1].part1
    straight = torch.autograd.grad(((rate - target) * 2 / target.numel() * block(means[first.name])).sum(), block.bn.weight)[0]
    torch.testing.assert_close(snn.body[1].part1.bn.weight.grad, straight, rtol=1e-4, atol=1e-6)
