"""A neuron is one equation, the user's own or an edited one: conversion, deployment, calibration and tuning all fire it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, TINY_RUN
from leaky import leaky

import report
import snn
import snn_ft
from quant import fit_, quantize_
from quant import functional as quantizers
from snn_layers import NEURONS, IFNeuron, Neuron, calibrate_rates_, checked, deploy, integrate_and_fire, spikes, to_spiking
from snn_layers.deployment import units
from snn_layers.export import network_file
from snn_layers.native import calls
from utils.checkpoints.checkpoint import network_state, save_checkpoint
from utils.errors import UserError
from utils.report.measure import traces
from utils.report.subject import read_tuned

IMAGES = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(1))
LEAKY = Neuron("leaky", leaky)


def test_a_leaky_neuron_leaks():
    current = torch.tensor([0.45, 0.0, 0.0, 0.6]).view(4, 1)
    # 0.5 -> 0.9, 0.81, 0.729 -> 1.2561: one spike; without a leak the membrane would be 1.55 and have fired as well
    assert leaky(current, torch.tensor(1.0)).flatten().tolist() == [0, 0, 0, 1]
    assert leaky(torch.tensor([0.25, 0.25]).view(2, 1), torch.tensor(1.0)).flatten().tolist() == [0, 0]
    assert integrate_and_fire(torch.tensor([0.25, 0.25]).view(2, 1), torch.tensor(1.0)).flatten().tolist() == [0, 1]


def test_a_deployed_network_fires_the_neuron_of_one_s_own(small):
    network = to_spiking(small, LEAKY)
    deployed = deploy(network, compile=False)
    assert deployed.plain
    assert not deploy(to_spiking(small), compile=False).plain
    exact = copy.deepcopy(network).double()
    torch.testing.assert_close(deployed(IMAGES), exact(IMAGES.double()).float())
    assert all(set(train.unique().tolist()) <= {0, 1} for train in spikes(exact, IMAGES.double()).values())
    assert not torch.equal(deployed(IMAGES), deploy(to_spiking(small, "unsigned"), compile=False)(IMAGES))


def test_a_trace_shows_the_membrane_of_the_neuron_s_own_equation(small):
    """With a leak the sum of currents minus spikes is not the membrane."""
    network = to_spiking(small, LEAKY)
    name, part, values = next((part.name, part, values) for part, values in network.double().walk(IMAGES[:1].double())
                              if not network.activation(part.name).encodes)
    neuron = network.activation(name)
    current = neuron.currents(network.run(part, values)[0]).flatten(1) / neuron.threshold
    membrane, spikes = neuron.start * torch.ones_like(current[0]), []
    expected = [membrane]
    for step in current:
        membrane = 0.9 * membrane + step
        spikes.append((membrane >= 1).double())
        membrane = membrane - spikes[-1]
        expected.append(membrane)
    found, = traces(network, IMAGES[0], [name])
    shown, wanted = ({tuple(column.tolist()) for column in trace.T} for trace in (found.membrane, torch.stack(expected).float()))
    assert shown <= wanted
    assert found.spikes.any()


def test_a_neuron_that_does_not_tell_its_membrane_has_spikes_only(small):
    def silent(current, threshold, delay=0, start=0.5):
        return leaky(current, threshold, delay, start)

    network = to_spiking(small, Neuron("silent", silent))
    found, told = (traces(snn, IMAGES[0], [name for name, _ in snn.units()]) for snn in (network, to_spiking(small, LEAKY)))
    assert all(unit.membrane is None for unit in found)
    assert [unit.spikes.tolist() for unit in found] == [unit.spikes.tolist() for unit in told]


def edited(current, threshold, signed=True, delay=0, start=0.5):
    return integrate_and_fire(current, 1.2 * threshold, signed, delay, start)


@pytest.mark.parametrize("name", NEURONS)
def test_an_edited_equation_is_fired_and_not_the_fused_pass_of_the_old_one(small, name):
    """Only the equation is edited, as if in functional.py; the fused pass then no longer fires the same."""
    kind = Neuron(name, lambda current, threshold, **how: edited(current, threshold, name == "signed", **how), name == "signed")
    network = to_spiking(small, kind)
    deployed = deploy(network, compile=False)
    assert deployed.plain
    torch.testing.assert_close(deployed(IMAGES), copy.deepcopy(network).double()(IMAGES.double()).float())


def test_an_edited_equation_is_not_lost_in_a_file(small):
    """A file would hold the fused pass, which fires as the old equation."""
    network = to_spiking(small, Neuron("signed", edited, True))
    with pytest.raises(ValueError, match="an equation of one's own, which no fused pass computes"):
        network_file(network, Path("network.pt2"), (3, 9, 7), {})


def test_an_edited_quantizer_is_computed_and_not_the_fused_pass_of_the_old_one(small, monkeypatch):
    assert not deploy(small, compile=False).plain
    floors = quantizers._ActivationQuantization
    monkeypatch.setattr(floors, "forward", staticmethod(lambda ctx, x, threshold, steps: (
        (x / threshold).clamp(0, 1).mul(steps).floor() * threshold / steps)))
    units._agrees.cache_clear()
    deployed, expected = deploy(small, compile=False), copy.deepcopy(small).double()(IMAGES.double()).float()
    units._agrees.cache_clear()
    assert deployed.plain
    torch.testing.assert_close(deployed(IMAGES), expected)


@pytest.mark.parametrize(("kind", "named"), [
    (lambda current, threshold, **how: leaky(current, threshold, **how) > 0, "spikes of bool: return them in the type of"),
    (lambda current, threshold, **how: leaky(current, threshold, **how).int(), "spikes of int32: return them in the type of")])
def test_spikes_of_another_type_are_refused(kind, named):
    with pytest.raises(ValueError, match=named):
        checked(Neuron("typed", kind))


def test_spikes_that_share_memory_are_taken():
    def same(current: torch.Tensor, threshold: torch.Tensor, delay: int = 0, start: float = 0.5) -> torch.Tensor:
        return (current.sum(0) > threshold).to(current.dtype).expand_as(current)

    neuron = IFNeuron(torch.nn.Parameter(torch.tensor(2.0)), 3, checked(Neuron("same", same)))
    assert neuron(torch.ones(6, 4)).tolist() == [[2.0] * 4] * 6


def test_cpp_that_fires_differently_is_not_used(small, monkeypatch):
    """The fused pass and the equation agree, as if passes.cpp alone had been edited, or forgotten."""
    kind = Neuron("signed", lambda *given, **how: integrate_and_fire(*given, **how), True)
    assert not deploy(to_spiking(small, kind), compile=False).plain
    other = Neuron("signed", lambda *given, **how: integrate_and_fire(*given, **how), True)  # judged anew
    monkeypatch.setattr(calls, "fire", lambda accumulator, *given: torch.zeros_like(accumulator))
    assert deploy(to_spiking(small, other), compile=False).plain


def test_a_leaky_network_is_calibrated(small):
    network = to_spiking(small, LEAKY)
    rates = deploy(network, compile=False).firing_rates(IMAGES)
    calibrate_rates_(network, small, IMAGES)
    after = deploy(network, compile=False).firing_rates(IMAGES)
    target: dict = {}
    hooks = [neuron.register_forward_hook(lambda _, __, output, name=name: target.update({name: output}))
             for name, neuron in small.units()]
    small(IMAGES)
    for hook in hooks:
        hook.remove()

    def error(found: dict) -> float:
        return sum((found[name] - target[name]).mean((0, 2, 3)).abs().mean().item() for name in target)

    assert error(after) < error(rates)


@pytest.fixture
def digits(tmp_path):
    torch.manual_seed(0)
    from models import build
    network = fit_(quantize_(build(TINY, "digits"), 2), torch.randn(8, 3, 32, 32))
    save_checkpoint(tmp_path / "start.pth.tar", network_state(network))
    return ["-a", TINY, "--dataset", "digits", "--bit", "2", "--init", str(tmp_path / "start.pth.tar"), "-t", "-b", "4",
            "--result", str(tmp_path), "--neuron", f"{ROOT / 'tests' / 'leaky.py'}:leaky"]


def test_the_command_line_takes_a_neuron_from_a_file(digits, tmp_path, capsys):
    assert snn.main([*digits, "-e"])["snn"].count == 40
    output = capsys.readouterr()
    assert "SNN, leaky neurons" in output.out
    assert output.err.count("leaky neurons run by their equation") == 1
    tuned = snn_ft.main([*digits, "--method", "global"])
    assert tuned["directory"] == tmp_path / f"{TINY_RUN}_2bit_ft_global_leaky_test"
    assert tuned["neuron"] == "leaky"
    again = ["-e", "--init", str(tuned["directory"] / "model_best.pth.tar")]
    said = "was tuned with --neuron FILE.py:leaky: that scores it"
    snn.main([*digits, *again])
    assert said not in capsys.readouterr().err
    snn.main([*digits[:-2], *again])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("equation", "named"), [
    (lambda current, threshold: current, r"mine\(current, threshold, delay=, start=\) fails \(TypeError"),
    (lambda current, threshold, delay, start: current[0], "does not map currents"),
    (lambda current, threshold, delay, start: 3 * current, "does not map currents")])
def test_an_equation_that_gives_no_spikes_is_named(equation, named):
    with pytest.raises(ValueError, match=named):
        checked(Neuron("mine", equation))
    assert checked(LEAKY) is LEAKY


def test_an_equation_that_ignores_what_is_asked_of_it_is_named(digits, tmp_path):
    def deaf(current, threshold, delay, start):
        return leaky(current, threshold)

    def short(current, threshold, delay, start):
        return leaky(current, threshold, 0, start)[delay:]

    mine = Neuron("mine", deaf)
    with pytest.raises(ValueError, match="does not map currents"):
        checked(Neuron("short", short), delay=1)
    (tmp_path / "deaf.py").write_text("def deaf(current, threshold, delay, start):\n    return (current > threshold).float()\n")
    with pytest.raises(UserError, match="deaf fires the same with delay 1"):
        snn.main([*digits[:-1], f"{tmp_path / 'deaf.py'}:deaf", "-e", "--delay", "1"])
    assert checked(mine) is mine
    with pytest.raises(ValueError, match="mine fires the same with delay 2: use it there"):
        checked(mine, delay=2)
    with pytest.raises(ValueError, match="mine fires the same with start 0"):
        checked(mine, start=0.0)
    for delay in (1, 2, 15):
        assert checked(LEAKY, delay=delay, start=0.0) is LEAKY
        assert all(checked(kind, delay, 0.0) is kind for kind in NEURONS.values())


def test_an_export_of_one_s_own_neuron_is_refused_before_the_evaluation(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(snn, "compare", None)
    with pytest.raises(UserError, match=r"a file cannot hold .*leaky neurons, only signed or unsigned ones"):
        snn.main([*(flag for flag in digits if flag != "-t"), "-e", "--export", str(tmp_path / "network.pt2")])


def test_a_report_measures_the_neuron_of_one_s_own(digits, small, tmp_path):
    own = f"{ROOT / 'tests' / 'leaky.py'}:leaky"
    path, = report.main([str(tmp_path / "start.pth.tar"), "-a", TINY, "--neuron", own, "--images", "8"])
    found = json.loads(path.with_suffix(".json").read_text())
    assert [network["name"] for network in found["snns"]] == ["unsigned", "signed", "leaky"]
    assert found["delays"].keys() == {"signed", "unsigned", "leaky"}
    assert "Membranes of three leaky neurons" in path.read_text()
    contents = network_state(small) | {"finetune": {"neuron": "leaky", "delay": 0}}
    save_checkpoint(tmp_path / "tuned.pth.tar", contents)
    with pytest.raises(UserError, match=r"was tuned for leaky neurons, .* add --neuron"):
        read_tuned(tmp_path / "tuned.pth.tar", None, NEURONS)
    with pytest.raises(UserError, match="are measured anyway"):
        report.main([str(path), "--neuron", "signed"])
    with pytest.raises(UserError, match=r"--neuron: .* has no function 'lif'"):
        report.main([str(path), "--neuron", f"{ROOT / 'tests' / 'leaky.py'}:lif"])


def test_what_is_no_neuron_is_named(digits):
    with pytest.raises(UserError, match="unknown neuron 'lif': choose signed or unsigned"):
        snn.main([*digits, "--neuron", "lif"])
    with pytest.raises(UserError, match="signed is one of ours; rename the function"):
        snn.main([*digits, "--neuron", "mine.py:signed"])
    with pytest.raises(UserError, match="has no function 'lif'"):
        snn.main([*digits, "--neuron", f"{ROOT / 'tests' / 'leaky.py'}:lif"])
    with pytest.raises(UserError, match="a derivative for signed and unsigned neurons only"):
        snn_ft.main([*digits, "--method", "through-time"])
