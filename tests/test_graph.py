"""Any network: what a trace makes of a module, and that its spiking network is the quantized one at full delay."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from models import Network
from quant import QuantReLU, dequantize_, fit_, learn_, outputs, quantize_, time_steps
from snn_layers import FinetuneConfig, calibrate_rates_, deploy, finetune, latency, rate_logits, spikes, to_spiking
from snn_layers.tuning.rate import firing_rates

examples = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
STEMS = ("module", "functional", "method", "relu6", "clamp")
STEPS = ("conv", "conv", "grouped", "dilated", "strided", "residual", "minus", "cat", "split", "average", "max", "up", "dropout",
         "again", "scaled", "shuffle")


class Drawn(nn.Module):
    """A network of drawn steps on 4 channels, with one shared ReLU and one or two heads."""

    def __init__(self, steps: list[str], relus: list[str], norms: list[bool], heads: int):
        super().__init__()
        self.steps, self.relus, self.heads = steps, relus, heads
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        options = {"grouped": {"groups": 2}, "dilated": {"dilation": 2, "padding": 2}, "cat": {}, "strided": {}}
        self.convs = nn.ModuleList(nn.Conv2d(8 if step == "cat" else 4, 4, 3, **{"padding": 1} | options.get(step, {}))
                                   for step in steps)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) if norm else nn.Identity() for norm in norms)
        self.pools = nn.ModuleList(nn.AvgPool2d(2) if step == "average" else nn.MaxPool2d(3, 1, 1) for step in steps)
        self.ends = nn.ModuleList(nn.Linear(4, 5) for _ in range(heads))

    def relu(self, x, how):
        if how == "module":
            return self.shared(x)
        if how == "relu6":
            return F.relu6(x)
        return x.relu() if how == "method" else F.relu(x) if how == "functional" else torch.clamp(x, 0, 3)

    def forward(self, x):
        x = self.relu(self.stem(x), self.relus[0])
        for step, how, conv, norm, pool in zip(self.steps, self.relus, self.convs, self.norms, self.pools, strict=True):
            y = torch.cat([x, x.flip(1)], dim=1) if step == "cat" else x
            if step == "split":
                a, b = x.chunk(2, dim=1)
                y = torch.cat((b, a), 1)
            if step in ("average", "max"):
                y = pool(x)
            if step == "dropout":
                y = F.dropout(x, 0.4, training=self.training)
            if step == "shuffle":
                batch, channels, height, width = x.shape
                y = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
            y = norm(conv(y))
            if step == "residual":
                y += x
            elif step == "minus":
                y = y - 0.5 * x
            elif step == "again":
                y = norm(conv(y))  # a convolution of a convolution's output
            elif step == "scaled":
                y = y * 1.5 + 0.1
            elif step == "average":
                y = F.interpolate(y, size=x.shape[-2:], mode="nearest")
            elif step == "up":
                y = F.max_pool2d(F.interpolate(y, scale_factor=2.0, mode="bilinear"), 2)
            x = self.relu(y, how)
        x = x.mean((2, 3))
        out = [end(x) for end in self.ends]
        return {"logits": out[0], "other": out[1]} if self.heads == 2 else out[0]


@st.composite
def drawn(draw) -> Drawn:
    """Draw a float network."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4))
    relus = [draw(st.sampled_from(STEMS)) for _ in steps]
    network = Drawn(steps, relus, [draw(st.booleans()) for _ in steps], draw(st.integers(1, 2)))
    for layer in (network.stem, *network.ends):
        layer.weight.data.view(-1)[0].abs_()  # 8 bits need a positive weight
    return network


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantized(network: nn.Module, bit: int, weight_bit: int | None = None) -> Network:
    """Return it quantized and fitted to noise, in float64, with parameters of its own."""
    return copy.deepcopy(fit_(quantize_(network, bit, weight_bit), images(16))).eval().double()


@examples
@given(drawn(), st.integers(2, 3), st.sampled_from([None, 32]), st.sampled_from(["signed", "unsigned"]))
@torch.no_grad()
def test_full_delay_equals_the_quantized_network(network, bit, weight_bit, neuron):
    ann, x = quantized(network, bit, weight_bit), images(3, seed=1).double()
    snn = to_spiking(ann, neuron, time_steps(bit))
    for found, expected in zip(tree_leaves(snn(x)), tree_leaves(ann(x)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert latency(snn) == time_steps(bit) * (1 + ann.graph.readout.waiting)


@examples
@given(drawn(), st.integers(2, 3), st.integers(0, 2), st.sampled_from(["signed", "unsigned"]), st.booleans())
@torch.no_grad()
def test_deployed_fires_the_spikes_of_float64_and_counts_stay_within_0_and_t(network, bit, delay, neuron, integer):
    ann = quantized(network, bit, bit)
    x, steps = images(3, seed=2), time_steps(bit)
    snn = to_spiking(copy.deepcopy(ann).float(), neuron, delay)
    expected, found = spikes(copy.deepcopy(snn).double(), x.double()), {}
    deployed = deploy(snn, integer, compile=False, chunk=3)

    def keep(name: str, neuron: nn.Module, y: torch.Tensor) -> None:
        found[name] = (y.float() - neuron.zero).unflatten(0, (steps, -1))

    hooks = [unit.register_forward_hook(lambda unit, _, y, name=name: keep(name, unit, y)) for name, unit in deployed.units()]
    deployed(x)
    for hook in hooks:
        hook.remove()
    assert list(found) == list(expected)
    for name, train in expected.items():
        assert torch.equal(found[name].double(), train.double()), name
        counts = train.cumsum(0)
        assert counts.min() >= 0
        assert counts.max() <= steps
        assert train.min() >= (-1 if neuron == "signed" else 0)
    level = deploy(copy.deepcopy(ann).float(), integer, compile=False)
    for got, wanted in zip(tree_leaves(level(x)), tree_leaves(copy.deepcopy(ann).float().double()(x.double())), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


@examples
@given(drawn())
def test_a_trace_computes_the_same_and_keys_and_parameters_survive(network):
    x = images(2, seed=3)
    expected = tree_leaves(network.eval()(x))
    traced = Network(network)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(traced(x)), expected, strict=True))
    assert traced.state_dict().keys() == network.state_dict().keys()
    changed = quantize_(network, 3)
    new = changed.state_dict().keys() - network.state_dict().keys()
    assert network.state_dict().keys() <= changed.state_dict().keys()
    assert all(name.endswith((".alpha", "threshold")) for name in new)
    ours, theirs = dict(changed.named_parameters()), dict(network.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(network(x)), expected, strict=True))  # it stays usable
    assert sum(isinstance(module, QuantReLU) for module in changed.modules()) == len(changed.graph.units)
    back = dequantize_(changed)
    assert all(torch.allclose(a, b) for a, b in zip(tree_leaves(back(x)), expected, strict=True))


@examples
@given(drawn(), st.sampled_from(["signed", "unsigned"]))
@torch.no_grad()
def test_a_state_loads_into_a_network_that_is_built_anew_and_calibration_comes_with_it(network, neuron):
    ann = quantized(network, 2, 2)
    again = quantize_(copy.deepcopy(network), 2, 2).double().eval()
    again.load_state_dict(ann.state_dict())
    x = images(2, seed=4).double()
    for a, b in zip(tree_leaves(to_spiking(again, neuron)(x)), tree_leaves(to_spiking(ann, neuron)(x)), strict=True):
        assert torch.equal(a, b)


@examples
@given(drawn(), st.sampled_from(["signed", "unsigned"]))
@torch.no_grad()
def test_rates_and_calibration_run_on_any_network(network, neuron):
    ann = quantized(network, 2)
    snn, x = to_spiking(ann, neuron), images(4, seed=5).double()
    for a, b in zip(tree_leaves(rate_logits(snn, x, firing_rates(snn, x))), tree_leaves(snn(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    full = to_spiking(ann, neuron, delay=3)  # nothing is lost, so that nothing is shifted, except at rounding ties
    for a, b in zip(tree_leaves(calibrate_rates_(full, ann, x)(x)), tree_leaves(ann(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


class Mixed(nn.Module):
    """Concatenation and max-pooling, a shared ReLU, a skip from the image to a deep layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.c, self.skip = nn.Conv2d(10, 6, 3), nn.Conv2d(3, 6, 3)
        self.relu, self.fc = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x):
        a = self.relu(self.a(x))
        b = F.max_pool2d(a, 3, 1, 1)
        y = torch.cat([a, self.relu(self.b(b))], 1)
        return self.fc(self.relu(self.c(y) + self.skip(x)).mean((2, 3)))


def test_a_skip_from_the_image_and_a_module_called_three_times():
    torch.manual_seed(0)
    ann = quantized(Mixed(), 3)
    assert list(ann.graph.activations) == ["relu", "relu_2", "relu_3"]
    assert ann.graph.regions == {"a": "static", "b": "spiking", "skip": "static", "c": "spiking", "fc": "readout"}
    x = images(3, seed=6).double()
    torch.testing.assert_close(to_spiking(ann, "unsigned", 7)(x), ann(x), rtol=1e-9, atol=1e-9)
    assert latency(to_spiking(ann, delay=7)) == 7 * 3


def test_layerwise_tuning_of_units_with_several_sources_lowers_the_loss():
    torch.manual_seed(0)
    ann = quantized(Mixed(), 3, 32).float()
    data = [(images(16, seed=7), torch.arange(16) % 5), (images(16, seed=8), torch.arange(16) % 5)]
    first, last = finetune(to_spiking(ann, "unsigned"), ann, data, data, FinetuneConfig(epochs=8, lr=0.1, force=True))
    assert (first.name, last.name) == ("relu_2", "relu_3")
    assert last.losses[-1] < 0.95 * last.losses[0]


class Inverted(nn.Module):
    """Two inverted residuals: their projections have no activation, and are summed."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 5), nn.Conv2d(4, 8, 1)
        self.expand = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in range(2))
        self.depthwise = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.project = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)) for _ in range(2))

    def forward(self, x):
        x = F.relu6(self.stem(x))
        for expand, depthwise, project in zip(self.expand, self.depthwise, self.project, strict=True):
            x = x + project(F.relu6(depthwise(F.relu6(expand(x)))))
        return self.fc(F.relu6(self.last(x)).mean((2, 3)))


class PreActivation(nn.Module):
    """Two pre-activation blocks: the input of each is read by a ReLU and by a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x):
        x = self.first(F.relu(self.stem(x)))
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return self.fc(F.relu(self.norms[2](x)).mean((2, 3)))


@pytest.mark.parametrize(("network", "owners"), [
    (Inverted, {"activation_2": {"expand.0"}, "activation_4": {"project.0.0", "project.0.1", "expand.1"},
                "activation_6": {"project.1.0", "project.1.1", "last"}}),
    (PreActivation, {"activation_2": {"first", "norms.0"}, "activation_3": {"convs.0", "norms.1"}})])
def test_layers_of_a_value_that_several_units_read_are_tuned_with_its_first_reader(network, owners):
    torch.manual_seed(0)
    ann = quantized(network(), 2, 32).float()
    data = [(images(16, seed=seed), torch.arange(16) % 5) for seed in (7, 8)]
    losses = []
    for online in (False, True):
        snn, seen = to_spiking(copy.deepcopy(ann), "unsigned"), {}
        with torch.no_grad():
            for name, parameter in snn.named_parameters():
                parameter.add_(0.3 * name.endswith("bias"))  # there is something to learn
        before = copy.deepcopy(snn.state_dict())

        def note(_, unit, snn=snn, before=before, seen=seen):
            now = snn.state_dict()
            seen[unit.name] = {name.rpartition(".")[0] for name in before if not torch.equal(now[name], before[name])}
            before.update(copy.deepcopy(now))

        results = finetune(snn, ann, data, data, FinetuneConfig(epochs=6, lr=0.3, force=True, online=online), on_unit=note)
        assert {name: seen[name] for name in owners} == owners
        losses.append([result.losses for result in results])
        assert sum(after[-1] for after in losses[-1]) < 0.7 * sum(after[0] for after in losses[-1])
    for kept, fresh in zip(*losses, strict=True):  # kept values are those of a run from the images
        assert kept == pytest.approx(fresh, rel=1e-2)


class Twice(nn.Module):
    """One convolution in two units, or in a unit and in the readout."""

    def __init__(self, readout: bool):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.readout = readout

    def forward(self, x):
        x = self.conv(F.relu(self.conv(F.relu(self.stem(x)))))
        return self.fc((x if self.readout else F.relu(x)).mean((2, 3)))


@pytest.mark.parametrize(("readout", "other"), [(False, "activation_3"), (True, "readout")])
def test_a_weight_that_two_units_share_is_refused_by_layerwise_tuning(readout, other):
    ann = quantized(Twice(readout), 2).float()
    data = [(images(4), torch.arange(4))]
    with pytest.raises(ValueError, match=f"conv is part of activation_2 and of {other}"):
        finetune(to_spiking(ann), ann, data, data)


class Odd(nn.Module):
    """A layer between two ReLUs."""

    def __init__(self, middle):
        super().__init__()
        self.stem, self.conv, self.fc, self.middle = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5), middle

    def forward(self, x):
        x = self.middle(self.conv(F.relu(self.stem(x))))
        return self.fc(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize(("middle", "named"), [
    (nn.PReLU(), "middle: PReLU is an activation, but no ReLU"), (nn.SiLU(), "SiLU"), (nn.GELU(), "GELU"),
    (nn.LeakyReLU(), "LeakyReLU"), (nn.Softmax(1), "Softmax is not affine"), (nn.GroupNorm(2, 4), "normalises by what it reads"),
    (nn.BatchNorm2d(4, track_running_stats=False), "normalises by what it reads"),
    (lambda x: x * x.mean((2, 3), keepdim=True), "mul of two activations"), (lambda x: x * x, "mul of two activations"),
    (lambda x: x.sigmoid(), "sigmoid"), (lambda x: x / x.mean((2, 3), keepdim=True), "truediv"), (torch.abs, "abs"),
    (lambda x: x - x.mean(), "mean works along axis 0"), (lambda x: x.transpose(0, 1), "transpose works along axis 0"),
    (lambda x: F.dropout(x, 0.5), "dropout that is always on"), (lambda x: F.instance_norm(x), "instance_norm")])
def test_what_is_not_affine_is_refused_by_name(middle, named):
    with pytest.raises(ValueError, match=named):
        quantize_(Odd(middle), 3)


def test_modes_and_sizes_are_not_frozen_by_the_trace():
    network = Network(Drawn(["dropout"], ["module"], [False], 1))
    x = images(2)
    assert torch.equal(network.eval()(x), network(x))
    assert not torch.equal(network.train()(x), network(x))
    for count, side in ((1, 8), (5, 12)):
        assert network(torch.randn(count, 3, side, side)).shape == (count, 5)


def test_a_module_whose_layers_have_names_of_the_network_itself():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph, self.units, self.activation = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
            self.bit = nn.Linear(4, 5)

        def forward(self, x):
            return self.bit(self.activation(self.units(F.relu(self.graph(x)))).mean((2, 3)))

    module = Named().eval()
    x = images(2)
    expected = module(x)
    assert torch.equal(Network(module)(x), expected)
    ann = quantized(module, 2)
    torch.testing.assert_close(to_spiking(ann, delay=3)(x.double()), ann(x.double()), rtol=1e-9, atol=1e-9)


def test_a_filter_keeps_layers_float():
    network = quantize_(Mixed(), 3, filter=lambda layer, name: name != "c")
    assert not hasattr(network.layer("c"), "weight_quantizer")
    assert hasattr(network.layer("b"), "weight_quantizer")


class Chunks(nn.Module):
    """Halves of one unit's output go to several others, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        left, right = F.relu(self.stem(x)).chunk(2, dim=1)
        y = torch.cat((left, F.relu(self.a(right))), 1)
        return self.fc(F.relu(self.b(y)).mean((2, 3)))


@torch.no_grad()
def test_what_units_share_is_tensors_and_no_lists_of_them():
    torch.manual_seed(0)
    ann, x = quantized(Chunks(), 3, 3), images(3, seed=9)
    torch.testing.assert_close(to_spiking(ann, delay=7)(x.double()), ann(x.double()), rtol=1e-9, atol=1e-9)
    snn = to_spiking(copy.deepcopy(ann).float())
    torch.testing.assert_close(deploy(snn, compile=False)(x), to_spiking(ann)(x.double()).float(), rtol=1e-4, atol=1e-4)
    assert deploy(snn, compile=False).exact_units() == []


class Padded(nn.Module):
    """A shortcut without weights, which drops places and adds channels of zeros (He et al., option A)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("integer", [False, True])
@torch.no_grad()
def test_zeros_that_a_shortcut_puts_on_are_zeros_where_spikes_are_stored_with_an_offset(integer):
    torch.manual_seed(0)
    ann, x = quantized(Padded(), 3, 3), images(3, seed=10)
    snn = to_spiking(copy.deepcopy(ann).float())
    deployed = deploy(snn, integer, compile=False)
    assert deployed.exact_units() == []
    torch.testing.assert_close(deployed(x), to_spiking(ann)(x.double()).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [Inverted, PreActivation, Mixed])
def test_thresholds_and_biases_that_learn_come_nearer_to_the_float_network(network):
    torch.manual_seed(0)
    start, x, fresh = Network(network()).eval(), images(64, seed=11), images(64, seed=12)
    targets, expected = outputs(start, x), outputs(start, fresh)[0]
    ann = fit_(quantize_(start, 2, 32), x).eval()
    weights = {name: value.clone() for name, value in ann.state_dict().items() if value.dim() > 1}
    before = F.mse_loss(ann(fresh), expected)
    learn_(ann, x, targets)
    assert F.mse_loss(ann(fresh), expected) < 0.8 * before
    assert all(torch.equal(ann.state_dict()[name], value) for name, value in weights.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in ann.parameters())
