"""Projections and their straight-through gradients, against recordings and against finite rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import (
    APoTWeight,
    apot_grid,
    nearest_level,
    quantize_activation,
    quantize_eight_bit,
    quantize_weight,
    replace_activation,
    time_steps,
)


def tensor(array: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_weights_agree_with_the_recording(primitives, bits):
    weight, alpha = tensor(primitives["weight"], grad=True), tensor(primitives["weight_alpha"], grad=True)
    quantized = quantize_weight(weight, alpha, APoTWeight(bits).levels(torch.float32))
    quantized.backward(tensor(primitives["weight_grad_out"]))
    torch.testing.assert_close(quantized, tensor(primitives[f"weight_q_{bits}"]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weight.grad, tensor(primitives[f"weight_grad_{bits}"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alpha.grad, tensor(primitives[f"weight_alpha_grad_{bits}"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_activations_agree_with_the_recording(primitives, bits):
    x, threshold = tensor(primitives["act"], grad=True), tensor(primitives["act_alpha"], grad=True)
    quantized = quantize_activation(x, threshold, time_steps(bits))
    quantized.backward(tensor(primitives["act_grad_out"]))
    torch.testing.assert_close(quantized, tensor(primitives[f"act_q_{bits}"]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, tensor(primitives[f"act_grad_{bits}"]))
    torch.testing.assert_close(threshold.grad, tensor(primitives[f"act_alpha_grad_{bits}"]), rtol=1e-5, atol=1e-5)


def test_first_layer_agrees_with_the_recording(primitives):
    quantized = quantize_eight_bit(tensor(primitives["first_weight"]))
    torch.testing.assert_close(quantized, tensor(primitives["first_weight_q"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_nearest_level_beats_every_other_level(bits):
    levels = APoTWeight(bits).levels(torch.float64)
    magnitude = torch.rand(2000, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    distance = (nearest_level(magnitude, levels) - magnitude).abs()
    torch.testing.assert_close(distance, (magnitude[:, None] - levels).abs().min(1).values)


def test_a_tie_goes_to_the_smaller_level():
    assert nearest_level(torch.tensor([0.125, 0.75]), torch.tensor([0, 0.25, 0.5, 1.0])).tolist() == [0, 0.5]


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_quantized_weights_are_integers_times_a_scale(bits):
    weight = torch.randn(8, 8, 3, 3, dtype=torch.float64)
    numerators, denominator = apot_grid(bits)
    quantized = quantize_weight(weight, torch.tensor(2.0, dtype=torch.float64), APoTWeight(bits).levels(torch.float64))
    integers = quantized / 2.0 * denominator
    torch.testing.assert_close(integers, integers.round())
    assert set(integers.round().abs().int().unique().tolist()) <= set(numerators)


def test_weight_gradients_follow_the_rule_element_by_element():
    weight = torch.tensor([-3.0, -0.4, 0.1, 0.9, 4.0], dtype=torch.float64, requires_grad=True)
    alpha, grad = torch.tensor(0.8, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, -2.0, 3.0, 0.5, 2.0])
    levels = APoTWeight(3).levels(torch.float64)
    quantize_weight(weight, alpha, levels).backward(grad.double())
    std, mean = weight.std().item(), weight.mean().item()
    expected = 0.0
    for value, g in zip(weight.tolist(), grad.tolist(), strict=True):
        u = (value - mean) / std / 0.8
        sign = (u > 0) - (u < 0)
        nearest = min(levels.tolist(), key=lambda level: abs(level - abs(u)))
        expected += g * (sign if abs(u) > 1 else sign * nearest - u)
    assert alpha.grad.item() == pytest.approx(expected)
    torch.testing.assert_close(weight.grad, grad.double() / std)


@given(st.floats(0.1, 10), st.sampled_from([3, 7, 15]))
@settings(deadline=None, max_examples=50)
def test_grid_values_are_fixed_points_of_the_activation(threshold, steps):
    threshold = torch.tensor(threshold, dtype=torch.float64)
    grid = torch.arange(steps + 1) * threshold / steps
    torch.testing.assert_close(quantize_activation(grid, threshold, steps), grid)


def test_activation_edges():
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0, 2.0001], requires_grad=True)
    threshold = torch.tensor(2.0, requires_grad=True)
    y = quantize_activation(x, threshold, 3)
    assert y.tolist() == pytest.approx([0, 0, 2 / 3, 2, 2])
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0]  # 0 < x <= θ
    assert threshold.grad.item() == pytest.approx(1 / 3 - 1 / 4 + 1)


def test_activation_rounds_half_to_even():
    x = torch.tensor([0.5, 1.5, 2.5]) / 7
    assert (quantize_activation(x, torch.tensor(1.0), 7) * 7).round().tolist() == [0, 2, 2]


def test_inputs_are_never_changed(primitives):
    for name, quantize in (("weight", lambda x: quantize_weight(x, torch.tensor(2.0), APoTWeight(3).levels(x.dtype))),
                           ("act", lambda x: quantize_activation(x, torch.tensor(1.0), 7)), ("weight", quantize_eight_bit)):
        x = tensor(primitives[name])
        quantize(x)
        assert torch.equal(x, tensor(primitives[name]))


@pytest.mark.parametrize("weight", [torch.zeros(3), -torch.ones(3), torch.full((3,), float("nan"))])
def test_eight_bits_without_a_positive_maximum_are_no_numbers(weight):
    assert quantize_eight_bit(weight).isnan().all()


def test_a_projection_has_no_temporary_larger_than_the_weight(operators):
    weight = torch.randn(64, 1024)
    with operators() as recorded:
        quantize_weight(weight, torch.tensor(3.0), APoTWeight(8).levels(weight.dtype))
    assert recorded.calls.count("bucketize") == 1
    assert recorded.largest == weight.numel()


@pytest.mark.parametrize("rule", ["weight", "activation", "replacement"])
def test_compiled_gradients_are_the_plain_ones(rule):
    torch.manual_seed(0)
    x, scale, other, grad = torch.randn(6, 5), torch.tensor(0.9), torch.rand(6, 5), torch.randn(6, 5)
    call = {"weight": lambda x, scale: quantize_weight(x, scale, torch.tensor([0, 0.25, 0.5, 1])),
            "activation": lambda x, scale: quantize_activation(x, scale, 7),
            "replacement": lambda x, scale: replace_activation(x, scale, other)}[rule]
    found = []
    for run in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        output = run(*leaves)
        found.append([output.detach(), *torch.autograd.grad(output, leaves, grad, materialize_grads=True)])
    assert found[0][1].any()
    assert all(torch.equal(plain, compiled) for plain, compiled in zip(*found, strict=True))
