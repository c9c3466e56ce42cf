"""Networks that write, move or sum their values in unusual ways: a trace computes what they do, deployed they fire the same."""

from copy import deepcopy
from io import BytesIO
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from leaky import leaky
from torch import Tensor, nn

import models
from models import INPUT, Network
from quant import check_values, dequantize_, fit_, normalised, quantize_, requantize_, scalars
from snn_layers import (
    FinetuneConfig,
    LayerMonitor,
    Neuron,
    RateNetwork,
    StepNorm,
    ThroughTime,
    TimeConfig,
    UnitProgress,
    calibrate_rates_,
    deploy,
    finetune,
    to_spiking,
)
from snn_layers.energy import fan_out, operations
from snn_layers.export import network_file
from snn_layers.step_norm import give_steps_
from utils.training.engine import sgd

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Layers are the same in any order of the tests."""
    torch.manual_seed(0)


class Net(nn.Module):
    """Layers by name, and a forward that a test gives."""

    def __init__(self, forward, **layers: nn.Module):
        super().__init__()
        self.stem, self.relu, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.LazyLinear(10)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.steps = forward

    def forward(self, x_: Tensor) -> Tensor:
        return self.steps(self, x_)


def conv(size: int = 3, **more) -> nn.Conv2d:
    return nn.Conv2d(8, 8, size, padding=size // 2, **more)


def tokens(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x)).permute(0, 2, 3, 1)
    return net.head(F.relu(net.b(F.relu(net.a(y)))).flatten(1))


def normed_tokens(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x)).flatten(2)
    return net.head(F.relu(net.norm(net.a(y))).flatten(1))


def viewed(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.a(net.relu(net.stem(x))))
    return net.head(F.relu(net.b(y.view(y.size(0), -1))).view(-1, 16))


def view_at_the_end(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.a(net.relu(net.stem(x))))
    return net.head(y.view(y.size(0), -1))


def reshaped_images(net: Net, x: Tensor) -> Tensor:
    return net.head(F.relu(net.a(net.relu(net.stem(x.reshape(x.shape[0], 3, 64).view(-1, 3, 8, 8))))).mean((2, 3)))


def broadcast(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x))
    return net.head(F.relu(net.a(F.avg_pool2d(y, 8)) + net.b(y)).flatten(1))


def broadcast_sum(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x))
    return net.head(F.relu(net.a(net.pool(y)) + net.c(net.b(y))).flatten(1))


def named_arguments(net: Net, x: Tensor) -> Tensor:
    y = net.relu(input=net.stem(input=x))
    z = torch.cat(tensors=(net.a(input=y), net.b(y)), dim=1)
    return net.head(F.relu(input=net.c(z)).mean((2, 3)))


def doubled(net: Net, x: Tensor) -> Tensor:
    y = net.a(net.relu(net.stem(x)))
    for _ in range(14):
        y = y + 0.5 * y
    return net.head(F.relu(1e-3 * y).mean((2, 3)))


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x))
    z = net.a(y)
    torch.relu_(z)
    w = net.b(z) + z
    F.relu_(w)
    return net.head(w.mean((2, 3)))


def in_place_twice(net: Net, x: Tensor) -> Tensor:
    y = net.fast(net.stem(x))
    h = net.a(y)
    z = net.fast(h)
    return net.head(F.relu(net.b(z) + h).mean((2, 3)))


def odd_names(net: Net, x_: Tensor) -> Tensor:
    return net.head((F.relu(net.a(net.relu(net.stem(x_)))) * net.gain_).mean((2, 3)))


def flat_calls(net: Net, x: Tensor) -> Tensor:
    y = F.dropout(F.relu(net.a(net.relu(net.stem(x)))).flatten(1), training=net.training)
    return net.head(0.1 * F.relu(net.c(F.relu(net.b(y)).clone())))


def bottleneck(net: Net, x: Tensor) -> Tensor:
    h = net.shrink(net.relu(net.stem(x)))
    y = F.relu(net.expand(h))
    return net.head(F.relu(net.expand(h + net.shrink(y))).mean((2, 3)))


def zeros_as_channels(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x))
    return net.head(F.relu(net.a(y) + torch.cat((y, torch.zeros_like(y)), 1)).mean((2, 3)))


def flat_bottleneck(net: Net, x: Tensor) -> Tensor:
    h = net.a(net.relu(net.stem(x)).flatten(1))
    return net.head(F.relu(net.b(F.relu(net.c(h))) + h))


def one_channel_for_all(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.stem(x))
    z = torch.cat((F.relu(y + net.one(y)), F.relu(net.a(y))), 1)
    return net.head(F.relu(net.c(z) + net.norm(net.one(net.a(y)))).mean((2, 3)))


def names_of_functions(net: Net, x: Tensor) -> Tensor:
    y = net.split(net.relu(net.stem(x)))
    return net.head(F.relu(F.relu(net.a(y) * net.mul) + y + net.view).mean((2, 3)))


NETWORKS = {
    "linear layers on channels-last maps": (tokens, {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}),
    "BN after a linear layer of tokens": (normed_tokens, {"a": nn.Linear(64, 16), "norm": nn.BatchNorm1d(8)}),
    "views of maps": (viewed, {"a": conv(), "b": nn.Linear(512, 16)}),
    "a view before the readout": (view_at_the_end, {"a": conv()}),
    "images in another shape": (reshaped_images, {"a": conv()}),
    "a sum that broadcasts": (broadcast, {"a": conv(1), "b": conv(groups=8)}),
    "a sum of values that broadcasts": (broadcast_sum, {"a": conv(1), "b": conv(), "c": conv(1), "pool": nn.AvgPool2d([8, 8])}),
    "arguments by name": (named_arguments, {"a": conv(), "b": conv(), "c": nn.Conv2d(16, 8, 1)}),
    "a value that doubles often": (doubled, {"a": conv()}),
    "functions in place": (in_place, {"a": conv(), "b": conv()}),
    "a module in place, called twice": (in_place_twice, {"a": conv(), "b": conv(), "fast": nn.ReLU(inplace=True)}),
    "calls that keep values flat": (flat_calls, {"a": conv(), "b": nn.Linear(512, 16), "c": nn.Linear(16, 8)}),
    "names with an underscore": (odd_names, {"a": conv(), "gain_": nn.Buffer(torch.full((8, 1, 1), 0.5))}),
    "a shortcut with channels of zeros": (zeros_as_channels, {"a": nn.Conv2d(8, 16, 3, padding=1)}),
    "flat bottlenecks without a bias": (flat_bottleneck, {
        "a": nn.Linear(512, 6, bias=False), "b": nn.Linear(6, 6, bias=False), "c": nn.Linear(6, 6, bias=False)}),
    "one channel that is added to all": (one_channel_for_all, {
        "one": nn.Conv2d(8, 1, 1), "a": conv(), "c": nn.Conv2d(16, 8, 1, groups=8), "norm": nn.BatchNorm2d(1)}),
    "names of functions": (names_of_functions, {
        "split": conv(), "a": conv(), "mul": nn.Parameter(torch.full((8, 1, 1), 0.5)), "view": nn.Buffer(torch.ones(8, 1, 1))}),
    "linear bottlenecks": (bottleneck, {"shrink": nn.Conv2d(8, 4, 1), "expand": nn.Conv2d(4, 8, 1)}),
}


@pytest.fixture(params=NETWORKS)
def net(request) -> Net:
    """Return a network in eval mode, with BN statistics of its own."""
    forward, layers = NETWORKS[request.param]
    found = Net(forward, **deepcopy(layers))
    found(IMAGES)
    return found.eval()


def test_a_trace_computes_what_the_module_does(net):
    torch.testing.assert_close(Network(net)(IMAGES), net(IMAGES.clone()), rtol=0, atol=1e-6)


def test_deployed_it_is_that_of_a_float64_run(net):
    ann = fit_(quantize_(net, 3, 3), IMAGES)
    expected = to_spiking(deepcopy(ann).double()).readouts(IMAGES.double())
    for how in (None, False):
        deployed = deploy(to_spiking(ann), how, compile=False)
        torch.testing.assert_close(deployed.readouts(IMAGES).double(), expected, rtol=0, atol=1e-5)
    expected = deepcopy(ann).double()(IMAGES.double())
    torch.testing.assert_close(deploy(ann, compile=False)(IMAGES).double(), expected, rtol=0, atol=1e-5)


def test_a_file_of_it_computes_the_same_for_any_number_of_images(net):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -r requirements-export.txt")
    ann = fit_(quantize_(net, 2, 2), IMAGES)
    for network in (ann, to_spiking(ann)):
        file = onnxruntime.InferenceSession(network_file(network, Path("network.onnx"), (3, 8, 8), {}))
        found = file.run(["logits"], {"images": IMAGES.numpy()})[0]
        assert found == pytest.approx(deploy(network, compile=False)(IMAGES).numpy(), abs=1e-5)


@pytest.mark.parametrize("net", ["flat bottlenecks without a bias", "calls that keep values flat"], indirect=True)
def test_a_neuron_of_one_s_own_fires_on_flat_values(net):
    snn = to_spiking(fit_(quantize_(net, 3, 3), IMAGES), Neuron("leaky", leaky))
    expected = deepcopy(snn).double()(IMAGES.double())
    torch.testing.assert_close(deploy(snn, compile=False)(IMAGES).double(), expected, rtol=0, atol=1e-5)


def test_a_constant_for_each_image_has_no_place_in_a_file():
    pytest.importorskip("onnx", reason="onnx is not installed")

    def joined(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.a(net.relu(net.stem(x))))
        return net.head(F.relu(net.b(torch.cat((y, net.extra.expand(y.shape[0], 2, 8, 8)), 1))).mean((2, 3)))

    snn = to_spiking(quantized(joined, a=conv(), b=nn.Conv2d(10, 8, 1), extra=nn.Parameter(torch.ones(1, 2, 1, 1))))
    with pytest.raises(ValueError, match="expand is a constant of as many rows as there are images"):
        network_file(snn, Path("network.onnx"), (3, 8, 8), {})


@pytest.mark.parametrize("net", ["a view before the readout"], indirect=True)
def test_a_program_for_torch_takes_any_number_of_images(net):
    snn = to_spiking(fit_(quantize_(net, 2, 2), IMAGES))
    program = torch.export.load(BytesIO(network_file(snn, Path("network.pt2"), (3, 8, 8), {}))).module()
    torch.testing.assert_close(program(IMAGES)["logits"], deploy(snn, compile=False)(IMAGES))


@pytest.mark.parametrize("net", ["calls that keep values flat", "views of maps"], indirect=True)
def test_linear_layers_of_flat_values_convolve_spikes_as_integers(net):
    assert deploy(to_spiking(fit_(quantize_(net, 2, 2), IMAGES)), compile=False).exact_units() == []


def counted(forward, **layers: nn.Module) -> float:
    """Return the additions of the unit after `forward`, a call without weights between spikes and a convolution."""
    torch.manual_seed(0)
    net = Net(lambda net, x: net.head(F.relu(net.a(forward(net, net.relu(net.stem(x))))).mean((2, 3))), a=conv(1), **layers)
    net(IMAGES)
    ann = fit_(quantize_(net.eval(), 3, 3), IMAGES)
    return operations(ann, deploy(to_spiking(ann), compile=False), IMAGES)[1].acs


def test_each_spike_counts_once_whatever_stands_before_a_convolution():
    plain = counted(lambda net, y: y)
    assert plain > 0
    for same in (lambda net, y: 0.5 * y, lambda net, y: y / 4, lambda net, y: -y, lambda net, y: y + 0.1,
                 lambda net, y: y * net.gain, lambda net, y: net.shuffle(y),
                 lambda net, y: y.view(y.size(0), y.shape[1] // 2, 2, *map(y.size, (2, 3))).flatten(1, 2),
                 lambda net, y: net.pool(y), lambda net, y: F.avg_pool2d(y, 2), lambda net, y: F.avg_pool2d(y, (2, 2))):
        layers = {"gain": nn.Buffer(torch.full((8, 1, 1), 0.3)), "shuffle": nn.ChannelShuffle(2), "pool": nn.AvgPool2d([2])}
        assert counted(same, **layers) == pytest.approx(plain)


@pytest.mark.parametrize("end", [
    lambda net, y: net.pool(y).flatten(1), lambda net, y: net.pool(y).view(-1, 8), lambda net, y: net.pool(y).view(y.size(0), 8),
    lambda net, y: net.pool(y)[:, :, 0, 0], lambda net, y: net.pool(y).squeeze(), lambda net, y: y.flatten(2).mean(-1),
    lambda net, y: F.adaptive_avg_pool2d(y, 1).reshape(-1, 8), lambda net, y: y.mean((2, 3)),
    lambda net, y: net.last(net.pool(y)).flatten(1) / 8,
    lambda net, y: torch.cat((y.mean((2, 3)), net.c.expand(y.shape[0], 2)), 1)])
def test_each_spike_counts_once_at_the_end(end):
    torch.manual_seed(0)
    net = Net(lambda net, x: net.head(end(net, F.relu(net.a(net.relu(net.stem(x)))))), a=conv(), pool=nn.AdaptiveAvgPool2d(1),
              last=conv(1), c=nn.Parameter(torch.ones(1, 2)))
    net(IMAGES)
    ann = fit_(quantize_(net.eval(), 3, 3), IMAGES)
    snn = to_spiking(ann)
    spikes = sum(snn.advance(snn.graph.units[1], snn.advance(snn.graph.units[0], {INPUT: IMAGES}))["activation"].abs().flatten())
    reached = 8 if any(node.target == "last" for node in ann.graph.readout.nodes) else 10
    counted = operations(ann, deploy(snn, compile=False), IMAGES)[-1].acs
    assert counted == pytest.approx((spikes / ann.activation("activation").threshold).item() * reached / len(IMAGES), rel=1e-4)


def test_places_beside_the_image_count_for_no_spike():
    pools = [nn.AvgPool2d(3, 1, 1, count_include_pad=whole) for whole in (True, False)]
    found = [counted(lambda net, y: net.pool(y), pool=pool) for pool in (*pools, nn.AvgPool2d(3, 1, 1, divisor_override=2))]
    assert found == pytest.approx([found[0]] * 3)
    assert counted(lambda net, y: net.pool(y), pool=nn.AdaptiveAvgPool2d(2)) == pytest.approx(
        counted(lambda net, y: net.pool(y), pool=nn.AvgPool2d(4)))


def test_operations_of_a_function_with_a_weight_are_not_guessed():
    with pytest.warns(UserWarning, match="weight keeps float"), pytest.raises(ValueError, match="conv2d, a function with a weight"):
        counted(lambda net, y: F.conv2d(y, net.weight), weight=nn.Parameter(torch.ones(8, 8, 1, 1)))


def test_a_transposed_convolution_reaches_its_output_padding():
    layer = nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=1)
    image = torch.zeros(1, 1, 3, 3)
    reached = [(layer(place) - layer(image)).ne(0).sum() for place in torch.eye(9).view(9, 1, 1, 3, 3)]
    assert fan_out(layer, (1, 3, 3)).flatten().tolist() == reached


def quantized(forward, images: Tensor = IMAGES, **layers: nn.Module) -> Network:
    torch.manual_seed(0)
    net = Net(forward, **layers)
    net(images)
    return fit_(quantize_(net.eval(), 2, 2), images)


def test_parameters_with_the_names_of_clips_are_weights():
    """ReZero starts from alpha = 0, and a layer scale has one alpha for each channel."""
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.relu(net.stem(x))
        return net.head(F.relu(net.alpha * net.a(y) + net.gain.alpha * y).mean((2, 3)))

    gain = nn.Module()
    gain.alpha = nn.Parameter(torch.ones(8, 1, 1))
    ann = quantized(forward, a=conv(), alpha=nn.Parameter(torch.zeros(())), gain=gain)
    assert to_spiking(ann)(IMAGES).isfinite().all()
    assert len(scalars(ann)) == 3  # a hidden layer, two thresholds


def test_a_parameter_that_is_named_as_a_threshold_is_a_weight():
    gain = nn.Module()
    gain.threshold = nn.Parameter(torch.zeros(8, 1, 1))
    ann = quantized(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x))) + net.gain.threshold).mean((2, 3))), a=conv(),
                    gain=gain)
    check_values(ann)
    weights, clips = sgd(ann, 0.1, 0.9, 5e-4).param_groups
    assert "gain.threshold" in weights["param_names"]
    assert len(clips["params"]) == 3  # a hidden layer, two thresholds
    before = gain.threshold.clone()
    snn = to_spiking(ann)
    finetune(snn, ann, [(IMAGES, torch.arange(6))], [(IMAGES, torch.arange(6))], FinetuneConfig(lr=0.1, force=True))
    assert not torch.equal(snn.state_dict()["gain.threshold"], before)


def test_a_parameter_that_nothing_reads_is_left_out():
    with pytest.warns(UserWarning, match="unused is left out: the network does not read it"):
        ann = quantized(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x))) * net.gain).mean((2, 3))), a=conv(),
                        gain=nn.Parameter(torch.ones(())), unused=nn.Parameter(torch.ones(2)))
    assert "unused" not in ann.state_dict()
    assert "gain" in ann.state_dict()


def test_a_calibrated_bias_counts_when_a_threshold_is_fitted():
    ann = quantized(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv())
    relu = ann.activation(list(ann.graph.activations)[-1])
    before = relu.threshold.item()
    relu.bias = nn.Parameter(torch.full((8,), 5.0))
    fit_(ann, IMAGES)
    assert relu.threshold.item() > before + 2


def test_float_weights_after_quantized_ones_get_statistics_of_their_scale():
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(F.relu(net.norm(net.a(net.relu(net.stem(x))))).mean((2, 3)))

    torch.manual_seed(0)
    net = Net(forward, a=conv(bias=False), norm=nn.BatchNorm2d(8))
    net(IMAGES)
    network = fit_(Network(net), IMAGES)
    with torch.no_grad():
        expected = network.eval()(IMAGES)
    ann = fit_(quantize_(network, 4), IMAGES)
    assert normalised(ann)
    back = requantize_(ann, 8, 32)
    assert not normalised(back)
    with torch.no_grad():
        found = fit_(back, IMAGES, rescaled=True).eval()(IMAGES)
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_layers_with_the_names_of_a_networks_attributes():
    net = Net(lambda net, x: net.facts(net.r2(net.graph(net.relu(net.stem(x)))).mean((2, 3))), graph=conv(), r2=nn.ReLU(),
              facts=nn.Linear(8, 10))
    torch.testing.assert_close(Network(net)(IMAGES), net(IMAGES))
    ann = quantize_(net, 3, 3)
    torch.testing.assert_close(dequantize_(ann)(IMAGES), net(IMAGES))


def test_a_calibrated_bias_of_an_activation_stays_at_other_bits():
    ann = quantized(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv(bias=False))
    path = ann.graph.activations["activation"]
    ann.layer(path).bias = nn.Parameter(torch.ones(8))
    torch.testing.assert_close(requantize_(ann, 2, 2)(IMAGES), ann(IMAGES))
    assert requantize_(ann, 3, 3).layer(path).bias is ann.layer(path).bias


def test_calibration_minds_what_is_subtracted_and_what_broadcasts():
    def subtracted(net: Net, x: Tensor) -> Tensor:
        y = net.relu(net.stem(x))
        return net.head(F.relu(torch.add(y, net.a(y), alpha=-1)).mean((2, 3)))

    def broadcasts(net: Net, x: Tensor) -> Tensor:
        y = net.relu(net.stem(x))
        return net.head(F.relu(net.one(y) + net.a(y)).mean((2, 3)))

    for forward in (subtracted, broadcasts):
        ann = quantized(forward, a=conv(), one=nn.Conv2d(8, 1, 1))
        snn, target = to_spiking(ann, "unsigned"), deploy(ann, compile=False).firing_rates(IMAGES)["activation"]

        def error(snn: Network, target: Tensor = target) -> float:
            rates = deploy(snn, compile=False).firing_rates(IMAGES)["activation"]
            return (rates - target).mean((0, 2, 3)).abs().max().item()

        before = error(snn)
        assert error(calibrate_rates_(snn, ann, IMAGES, rounds=10)) < before


def test_one_channel_for_all_is_calibrated():
    ann = quantized(NETWORKS["one channel that is added to all"][0], **deepcopy(NETWORKS["one channel that is added to all"][1]))
    snn = calibrate_rates_(to_spiking(ann, "unsigned"), ann, IMAGES)
    expected = deepcopy(snn).double()(IMAGES.double())
    torch.testing.assert_close(deploy(snn, compile=False)(IMAGES).double(), expected, rtol=0, atol=1e-5)


def test_layer_wise_tuning_skips_a_unit_that_has_nothing_to_learn():
    ann = quantized(lambda net, x: net.head(F.relu(net.a(F.relu(2 * net.relu(net.stem(x)) - 1))).mean((2, 3))), a=conv())
    data = [(IMAGES, torch.arange(6))]
    for online in (False, True):
        results = finetune(to_spiking(ann), ann, data, data, FinetuneConfig(online=online))
        assert [result.name for result in results] == ["activation_2"]


def test_going_on_within_the_first_unit_that_is_tuned_equals_an_unbroken_run():
    """Here it is the third one: the two before it see images."""
    ann = quantized(lambda net, x: net.head(F.relu(net.b(F.relu(net.stem(x)) + F.relu(net.a(x)))).mean((2, 3))),
                    a=nn.Conv2d(3, 8, 3, padding=1), b=conv())
    data, config, progress = [(IMAGES, torch.arange(6))], FinetuneConfig(epochs=3, lr=0.05, force=True), []
    whole, resumed = to_spiking(ann), to_spiking(deepcopy(ann))

    def stop(found: UnitProgress) -> None:
        progress.append(deepcopy(found))
        raise KeyboardInterrupt

    unbroken = finetune(whole, ann, data, data, config)
    with pytest.raises(KeyboardInterrupt):
        finetune(resumed, ann, data, data, config, on_epoch=stop)
    assert finetune(resumed, ann, data, data, config, started=progress[0]) == unbroken
    assert len(unbroken) == 1
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_weights_of_two_layers_that_are_one_are_refused_and_buffers_are_not():
    def forward(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.a(net.relu(net.stem(x))) * net.scale)
        return net.head(F.relu(net.b(y) * net.scale).mean((2, 3)))

    a, b, data = conv(), conv(), [(IMAGES, torch.arange(6))]
    tied = Net(forward, a=a, b=b, scale=nn.Buffer(torch.ones(())))
    tied(IMAGES)
    ann = fit_(quantize_(tied.eval(), 2, 2), IMAGES)
    finetune(to_spiking(ann), ann, data, data)
    b.weight = a.weight
    ann = fit_(quantize_(tied, 2, 2), IMAGES)
    with pytest.raises(ValueError, match="b is part of activation and of activation_2"):
        finetune(to_spiking(ann), ann, data, data)


def test_a_time_step_before_the_first_spikes_is_sound():
    ann = quantized(lambda net, x: net.head(F.relu(net.norm(net.a(net.relu(net.stem(x))))).mean((2, 3))), a=conv(),
                    norm=nn.BatchNorm2d(8))
    with torch.no_grad():
        ann.activation("relu").threshold.copy_(1.1 * ann.layer("stem")(IMAGES).max())  # no spike in the first step
    tuned = ThroughTime(to_spiking(ann, "unsigned", start=0))
    tuned.settle_(IMAGES)
    variance = tuned.finished().layer("norm").running_var
    assert not variance[0].any()
    check_values(tuned.snn)
    with torch.no_grad():
        variance.zero_()
    with pytest.raises(ValueError, match="norm has the variance 0 in channel 0"):
        check_values(tuned.snn)


def test_bn_of_other_steps_is_not_tuned_in_part():
    ann = quantized(lambda net, x: net.head(F.relu(net.norm(net.a(net.relu(net.stem(x))))).mean((2, 3))), a=conv(),
                    norm=nn.BatchNorm2d(8))
    give_steps_(ann, {ann.layer("norm"): 3})
    ThroughTime(to_spiking(ann))
    with pytest.raises(ValueError, match="BN of 3 time steps and runs 2"):
        ThroughTime(to_spiking(ann, steps=2))


def test_a_rate_network_leaves_the_ann_as_it_is():
    ann = quantized(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv())
    RateNetwork(to_spiking(ann))
    assert all(parameter.requires_grad for parameter in ann.parameters())


@pytest.mark.parametrize(("norm", "named"), [
    (nn.BatchNorm2d(8, affine=False), "norm has no scale and shift"), (nn.BatchNorm2d(8, momentum=None), "--norm frozen")])
def test_bn_that_cannot_learn_time_steps_is_named(norm, named):
    ann = quantized(lambda net, x: net.head(F.relu(net.norm(net.a(net.relu(net.stem(x))))).mean((2, 3))), a=conv(), norm=norm)
    with pytest.raises(ValueError, match=named):
        ThroughTime(to_spiking(ann))
    ThroughTime(to_spiking(ann), TimeConfig("frozen")).train()(IMAGES)


def test_bn_that_also_sees_images_keeps_one_set_of_statistics():
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(F.relu(net.norm(net.a(net.relu(net.norm(net.stem(x)))))).mean((2, 3)))

    network = ThroughTime(to_spiking(quantized(forward, a=conv(), norm=nn.BatchNorm2d(8))))
    network.train()(IMAGES[:4])
    assert not any(isinstance(module, StepNorm) for module in network.modules())


def assigned(net: Net, y: Tensor) -> Tensor:
    y[:, 0] = 1.0
    return y


REFUSED = {
    "an assignment in place to a part": (lambda net, y: (y[:, :2].relu_(), y)[1], "works in place on a view"),
    "a change in place of another form": (lambda net, y: (y.view(6, -1).mul_(2.0), y)[1], "works in place on a view"),
    "division that rounds": (lambda net, y: torch.div(y, 0.7, rounding_mode="floor"), "leave rounding_mode out"),
    "a sum over all": (lambda net, y: y - y.sum(dim=None), "axis 0"),
    "batch and channels swapped": (lambda net, y: y.transpose(1, 0), "axis 0"),
    "an assignment": (assigned, "torch.where instead of assigning"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name):
    change, named = REFUSED[name]
    net = Net(lambda net, x: net.head(F.relu(net.a(change(net, net.relu(net.stem(x))))).mean((2, 3))), a=conv())
    with pytest.raises(ValueError, match=named):
        Network(net)


def test_a_tensor_that_is_computed_of_parameters_is_named():
    net = Net(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv())
    with pytest.warns(FutureWarning, match="weight_norm"):
        net.a = nn.utils.weight_norm(net.a)
    net(IMAGES)
    with pytest.raises(ValueError, match="call remove_weight_norm first"):
        Network(net)


def test_a_network_that_is_not_quantized_yet_is_told_so():
    net = Net(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv())
    for call in (lambda: fit_(net, IMAGES), lambda: to_spiking(net)):
        with pytest.raises(ValueError, match="take the network that quantize_ returns"):
            call()
    with pytest.raises(ValueError, match="deploy takes what to_spiking returns, or quantize_"):
        deploy(net)


def test_a_scale_below_what_float32_divides_by_is_zero():
    norm = nn.BatchNorm2d(8)
    ann = quantized(lambda net, x: net.head(F.relu(net.norm(net.a(net.relu(net.stem(x))))).mean((2, 3))), a=conv(), norm=norm)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1e-36, 1e-38, 1e-40, 1e-44, 0, -1e-38, -1e-44]))
        norm.bias.fill_(0.7)
    expected = to_spiking(deepcopy(ann).double())(IMAGES.double())
    for how in (True, False):
        torch.testing.assert_close(deploy(to_spiking(ann), how, compile=False)(IMAGES).double(), expected, rtol=0, atol=1e-5)


def test_bytes_that_do_not_hold_all_levels_are_refused():
    net = Net(lambda net, x: net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), a=conv())
    net(IMAGES)
    with pytest.raises(ValueError, match="integer=True: bytes do not hold the 256 levels of a 8-bit network"):
        deploy(quantize_(net, 8, 2), integer=True)


def test_a_monitor_sees_the_spikes_of_each_unit():
    net = Net(*NETWORKS["linear bottlenecks"][:1], **deepcopy(NETWORKS["linear bottlenecks"][1]))
    net(IMAGES)
    ann = fit_(quantize_(net.eval(), 3, 3), IMAGES)
    found = []
    for network, snn in product((ann, deploy(ann, compile=False)), (to_spiking(ann), deploy(to_spiking(ann), compile=False))):
        with LayerMonitor(network, snn) as monitor:
            network(IMAGES)
            snn(IMAGES)
        found.append([value for row in monitor.statistics() for value in (row.firing_rate, row.error)])
    assert all(values == pytest.approx(found[0], abs=1e-5) for values in found)
    assert min(found[0][::2]) > 0


def test_outputs_that_are_no_tensors_come_from_the_first_run():
    net = Net(lambda net, x: (net.head(F.relu(net.a(net.relu(net.stem(x)))).mean((2, 3))), None), a=conv())
    net(IMAGES)
    snn = to_spiking(quantize_(net.eval(), 2, 2))
    for network in (snn, deploy(snn, chunk=2, compile=False)):
        logits, nothing = network.readouts(IMAGES)
        assert logits.shape == (3, 6, 10)
        assert nothing is None


def test_long_parts_are_written_without_recursion():
    def long(net: Net, x: Tensor) -> Tensor:
        y = net.relu(net.stem(x))
        for _ in range(400):
            y = y + 0.001
        return net.head(y.mean((2, 3)))

    net = Net(long)
    torch.testing.assert_close(Network(net)(IMAGES), net(IMAGES))


def test_a_users_file_may_hold_dataclasses(tmp_path):
    file = tmp_path / "json.py"  # the name of another module
    file.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n\n"
                    "@dataclass\nclass Config:\n    width: int = 4\n\n"
                    "def network(num_classes):\n    width = Config().width\n"
                    "    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, num_classes))\n")
    assert models.build(f"{file}:network", num_classes=5)(IMAGES).shape == (6, 5)
    with pytest.raises(ValueError, match="pass num_classes"):
        models.build("resnet20", "folder")
