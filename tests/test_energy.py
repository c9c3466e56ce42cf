"""Operations and energy: counted one spike at a time, in loops."""

import math

import pytest
import torch
from torch import nn

from models import Network, Stack, Unit
from models.unit import conv_unit, linear_unit
from quant import fit_, quantize_
from snn_layers import deploy, to_spiking
from snn_layers.energy import FP32, INT8, Operations, ann_energy, fan_out, mean_over_batches, operations, snn_energy, total

IMAGES = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def plain(height: int, width: int) -> Network:
    """Return a 2-bit network of convolutional and linear units."""
    outputs = [(length + 2 - 5) // 3 + 1 for length in (height, width)]
    body = nn.Sequential(conv_unit(3, 8), conv_unit(8, 8, 5, 3, 1), nn.Flatten(), linear_unit(8 * math.prod(outputs), 16))
    network = Network(Stack(body, nn.Identity(), nn.Linear(16, 5)))
    return fit_(quantize_(network, 2), IMAGES.repeat(8, 1, 1, 1)).eval()


def reached(layer: nn.Module, y: int, x: int, size: tuple[int, int]) -> int:
    """Return the outputs that an input at (y, x) reaches, by trying each tap of each output."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    count, (kernel_y, kernel_x), (stride_y, stride_x), (pad_y, pad_x) = 0, layer.kernel_size, layer.stride, layer.padding
    for out_y in range((size[0] + 2 * pad_y - kernel_y) // stride_y + 1):
        for out_x in range((size[1] + 2 * pad_x - kernel_x) // stride_x + 1):
            tap_y, tap_x = y - (out_y * stride_y - pad_y), x - (out_x * stride_x - pad_x)
            count += 0 <= tap_y < kernel_y and 0 <= tap_x < kernel_x
    return count * layer.out_channels


def brute(layer: nn.Module, values: torch.Tensor) -> int:
    """Return the operations of a layer for inputs [N, C, H, W] or [N, features]: one at a time where they are not zero."""
    values = values if values.dim() == 4 else values[..., None, None]
    size = tuple(values.shape[2:])
    return sum(reached(layer, y, x, size) for _, _, y, x in values.nonzero().tolist())


def units_of(model: Network) -> list[tuple[str, Unit]]:
    """Return (name, unit) in forward order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Unit)]


def recorded_run(model: Network) -> tuple[dict, dict]:
    """Return the input of each layer that has weights, and the output of each unit by its name."""
    inputs, outputs = {}, {}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda layer, x: inputs.update({layer: x[0]}))
    for name, activation in model.units():
        activation.register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y}))
    with torch.inference_mode():
        model(IMAGES)
    return inputs, outputs


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), [(3, 1, 1, (5, 6)), (3, 2, 1, (9, 7)), (3, 2, 0, (8, 8)),
                                                                   (1, 2, 0, (5, 5)), (11, 4, 2, (23, 20)), (5, 3, 1, (6, 9))])
def test_fan_out_is_exact_with_stride_and_padding(kernel, stride, padding, size):
    layer = nn.Conv2d(2, 3, kernel, stride, padding)
    expected = torch.tensor([[reached(layer, y, x, size) for x in range(size[1])] for y in range(size[0])])
    assert torch.equal(fan_out(layer, (2, *size)), expected.float())


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_operations_are_those_of_each_spike(small, pooled, neuron):
    ann = small if pooled else plain(9, 7)
    snn = to_spiking(ann, neuron)
    found = {row.name: row for row in operations(ann, deploy(snn, compile=False), IMAGES)}
    assert list(found) == [name for name, _ in ann.units()] + ["head"]
    for kind, model in (("acs", snn), ("nonzero", ann)):
        inputs, outputs = recorded_run(model)
        for number, (name, unit) in enumerate(units_of(model)):
            count = brute(unit.conv, inputs[unit.conv])
            if unit.shortcut is not None:
                count += brute(unit.shortcut.conv, inputs[unit.shortcut.conv])
            elif name.endswith("part2") and kind == "acs":
                count += int(list(outputs.values())[number - 2].count_nonzero())  # the block's input
            expected = 0 if number == 0 and kind == "acs" else count / len(IMAGES)
            assert getattr(found[name], kind) == pytest.approx(expected), (kind, name)
        spikes = (outputs[name] if kind == "acs" else ann.pool(outputs[name])).count_nonzero().item()
        assert getattr(found["head"], kind) == pytest.approx(spikes * 5 / len(IMAGES))


def test_macs_are_those_of_an_image_without_zeros(small):
    ann = small
    rows = {row.name: row for row in operations(ann, deploy(to_spiking(ann), compile=False), IMAGES)}
    unit = ann.body[1].part2
    through_shortcut = brute(unit.shortcut.conv, torch.ones(1, 8, 9, 7))
    assert rows["body.1.part2"].macs == brute(unit.conv, torch.ones(1, 16, 5, 4)) + through_shortcut
    assert rows["body.2.part2"].adds == 16 * 5 * 4
    assert rows["body.0"].macs == brute(ann.body[0].conv, torch.ones(1, 3, 9, 7))
    assert rows["head"].macs == 16 * 5


def test_energy_by_hand():
    rows = [Operations("first", 1e6, 0, 0.9e6, 0, 1e6), Operations("second", 2e6, 1e5, 1e6, 3e6)]
    assert ann_energy(rows, FP32) == pytest.approx(3 * 4.6 + 0.09)
    assert ann_energy(rows, INT8, skip_zeros=True) == pytest.approx(1.9 * 0.23 + 0.003)
    assert snn_energy(rows, FP32) == pytest.approx(4.6 + 2.7)
    assert snn_energy(rows, INT8) == pytest.approx(0.23 + 0.09)


def test_batches_count_by_their_images_field_by_field():
    one, three = Operations("conv", 1.0, 2.0, 3.0, 4.0), Operations("conv", 5.0, 10.0, 15.0, 40.0)
    head = Operations("head", 1.0, 0.0, 1.0, 1.0)
    assert mean_over_batches([(1, [one, head]), (3, [three, head])]) == [Operations("conv", 4.0, 8.0, 12.0, 31.0), head]
    assert total([one, three]) == Operations("total", 6.0, 12.0, 18.0, 44.0)
