"""The integrate-and-fire equation: recorded trains, a trace by hand, its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quant import QuantReLU, quantize_activation
from snn_layers import IFNeuron, integrate_and_fire


@pytest.mark.parametrize("steps", [3, 7, 15])
@pytest.mark.parametrize("signed", [True, False])
def test_spike_trains_agree_with_the_recording(primitives, steps, signed):
    name = f"if_spikes_T{steps}_{'signed' if signed else 'unsigned'}"
    threshold = torch.from_numpy(np.array(primitives["if_threshold"]))
    for current, expected in zip(primitives[f"if_current_T{steps}"], primitives[name], strict=True):
        spikes = integrate_and_fire(torch.from_numpy(current), threshold, signed)
        assert np.array_equal(spikes.numpy(), expected)


# θ = 1, v starts at 0.5. The traces below give v after each current is added.
CURRENT = [0.6, -0.1, -0.2, 0.1, 0.5, -0.1]


def test_signed_trace_by_hand():
    # 1.1 fires -> 0.1; 0.0 -> 0.0; -0.2 takes the spike back -> 0.8; 0.9; 1.4 fires -> 0.4; 0.3
    assert trains(CURRENT, signed=True) == [1, 0, -1, 0, 1, 0]


def test_unsigned_trace_by_hand():
    # 1.1 fires -> 0.1; 0.0; -0.2; -0.1; 0.4; 0.3
    assert trains(CURRENT, signed=False) == [1, 0, 0, 0, 0, 0]


def test_a_signed_neuron_takes_back_no_more_than_it_gave():
    assert trains([-5.0, -5.0, -5.0, 0.0], signed=True) == [0, 0, 0, 0]
    assert trains([1.0, -5.0, 0.0, 0.0], signed=True) == [1, -1, 0, 0]


def test_membrane_just_below_zero_takes_nothing_back():
    assert trains([0.5, -0.0009], signed=True) == [1, 0]
    assert trains([0.5, -0.0011], signed=True) == [1, -1]


def test_delayed_trace_by_hand():
    # Output 1 sees 0.5 + 0.625 - 0.125 = 1.0, fires -> 0.0; -0.25 takes it back -> 0.75; 0.875; 1.375 fires -> 0.375; 0.25; 0.25
    exact = [0.625, -0.125, -0.25, 0.125, 0.5, -0.125]
    assert trains(exact, signed=True, delay=1) == [1, -1, 0, 1, 0, 0]


def test_trace_from_zero_by_hand():
    # 0.625 is silent; 0.5; 0.25; 1.0 fires -> 0.0; -0.25 takes it back -> 0.75; 1.0 fires
    assert trains([0.625, -0.125, -0.25, 0.75, -0.25, 0.25], signed=True, start=0) == [0, 0, 0, 1, -1, 1]


def trains(current: list[float], signed: bool, delay: int = 0, start: float = 0.5) -> list[int]:
    spikes = integrate_and_fire(torch.tensor(current, dtype=torch.float64)[:, None], torch.tensor(1.0), signed, delay, start)
    return spikes[:, 0].int().tolist()


@given(st.integers(0, 10_000), st.sampled_from([3, 7, 15]), st.booleans(), st.integers(0, 15))
@settings(deadline=None, max_examples=60)
def test_spikes_stay_in_range_and_the_input_stays_as_it_was(seed, steps, signed, delay):
    current = torch.randn(steps, 64, generator=torch.Generator().manual_seed(seed))
    kept = current.clone()
    spikes = integrate_and_fire(current, torch.tensor(0.7), signed, min(delay, steps))
    counts = spikes.cumsum(0)
    assert torch.equal(current, kept)
    assert spikes.unique().tolist() == [value for value in spikes.unique().tolist() if value in ((-1, 0, 1) if signed else (0, 1))]
    assert counts.min() >= 0
    assert counts.max() <= steps


@given(st.integers(0, 10_000), st.sampled_from([3, 7, 15]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_full_delay_is_the_quantized_activation(seed, steps, signed):
    current = torch.randn(steps, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    threshold = torch.tensor(1.3, dtype=torch.float64)
    counts = integrate_and_fire(current, threshold, signed, delay=steps).sum(0)
    torch.testing.assert_close(counts * threshold / steps, quantize_activation(current.mean(0), threshold, steps))


@pytest.mark.parametrize("steps", [3, 7, 15])
def test_a_constant_current_is_rounded_like_the_activation(steps):
    current = torch.linspace(-0.5, 1.5, 997, dtype=torch.float64)
    threshold = torch.tensor(0.9, dtype=torch.float64)
    for signed in (True, False):
        spikes = integrate_and_fire(current.expand(steps, -1), threshold, signed)
        torch.testing.assert_close(spikes.mean(0) * threshold, quantize_activation(current, threshold, steps))


@pytest.mark.parametrize("delay", [-1, 4])
def test_delay_out_of_range_is_an_error(delay):
    with pytest.raises(ValueError, match=f"delay is {delay}"):
        integrate_and_fire(torch.zeros(3, 1), torch.tensor(1.0), delay=delay)


def test_module_unfolds_time_from_the_batch_and_keeps_no_state():
    neuron = IFNeuron.from_quantized(QuantReLU(2, 0.5), 3, kind=True, delay=0, encodes=False)
    current = torch.randn(3 * 4, 2, 5, 5)
    spikes = neuron(current)
    expected = integrate_and_fire(current.view(3, 4, 2, 5, 5), torch.tensor(0.5)) * 0.5
    assert torch.equal(spikes, expected.flatten(0, 1))
    assert torch.equal(neuron(current), spikes)


def test_encoding_module_repeats_a_constant_current():
    neuron = IFNeuron(nn.Parameter(torch.tensor(0.5)), time_steps=3, encodes=True)
    current = torch.randn(4, 2)
    assert torch.equal(neuron(current), neuron.__class__(neuron.threshold, 3)(current.repeat(3, 1)))
