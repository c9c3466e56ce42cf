"""Each mechanism on a GPU, or on a pretended one: nothing mixes devices, and nothing waits for the device where it need not.

    make test-gpu      # on the machine's GPU; tests/test_device.py runs this file on a pretended one
"""

import copy
from contextlib import nullcontext

import pytest
import torch
from helpers import TINY

if not torch.cuda.is_available():
    # Pretended tensors cannot be inference tensors. This stands before the project's imports, which make its decorators.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()

import main
import snn as snn_script
import snn_ft
from models import Facts, Network
from models.resnet import residual_network
from quant import fit_, quantize_
from snn_layers import (
    FinetuneConfig,
    RateNetwork,
    ThroughTime,
    TimeConfig,
    calibrate_rates_,
    deploy,
    finetune,
    to_spiking,
)
from snn_layers.energy import operations
from tests.pretend import GPU, PretendedGPU
from utils.data.cifar import TensorLoader, load_images
from utils.report.measure import compare, traces
from utils.training.engine import evaluate, sgd, train_epoch
from utils.training.step import Step

PER_EPOCH = 50  # steps in which a training loop may wait once


@pytest.fixture
def gpu():
    """Yield the pretended GPU, or None on a machine with a real one."""
    if torch.cuda.is_available():
        yield None
        return
    with PretendedGPU() as pretended:
        yield pretended


@pytest.fixture
def images(gpu):
    return TensorLoader(load_images("digits", "nowhere", True), 16, augment=True, device=GPU, limit=64)


def small(bit: int) -> torch.nn.Module:
    """Return a residual network with a shortcut; narrow, since a pretended operation costs a millisecond."""
    torch.manual_seed(0)
    network = Network(residual_network(16, (16, 32), (1, 1), 10), Facts("resnet20", "digits", 10))
    return quantize_(network, bit)


@pytest.fixture(scope="module")
def fitted():
    return fit_(small(2), TensorLoader(load_images("digits", "nowhere", True), 32, augment=False).first(32)).eval()


@pytest.fixture
def ann(fitted, gpu):  # in this order, so that it is fitted on the CPU
    return copy.deepcopy(fitted).to(GPU, memory_format=torch.channels_last)


def on_device(network: torch.nn.Module) -> bool:
    return all(tensor.device == GPU for tensor in network.state_dict().values())


def waits(gpu) -> int:
    """Return how often the program has waited since the last call."""
    if gpu is None:
        return 0
    count = sum(gpu.waits.values())
    print(dict(gpu.waits))
    gpu.waits.clear()
    return count


@pytest.mark.parametrize("bit", [32, 2])
def test_an_epoch_waits_once_every_50_steps_and_once_for_its_data(gpu, images, bit):
    network = small(bit).to(GPU, memory_format=torch.channels_last)
    if bit < 32:
        fit_(network, images.first(32))
    step = Step(network, sgd(network, 0.01, 0.9, 1e-4))
    assert len(images) == 4
    waits(gpu)
    scores = train_epoch(step, images, lambda _: 0.01)
    assert waits(gpu) <= 3  # the epoch's plan goes up; at its end the note and the scores come down
    assert scores.count == 64
    train_epoch(step, [batch for _ in range(3) for batch in images], lambda _: 0.01, print_freq=PER_EPOCH)
    assert waits(gpu) <= 3 + 3
    assert on_device(network)


def test_a_step_under_a_strict_device_asks_nothing(gpu, images, ann):
    batches = list(images)
    step = Step(ann.train(), sgd(ann, 0.01, 0.9, 1e-4))
    step.begin()
    step(*batches[0], 0.01)
    waits(gpu)
    if gpu is None:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(*batch, 0.01)
    finally:
        if gpu is None:
            torch.cuda.set_sync_debug_mode("default")
    assert waits(gpu) == 0


def test_evaluation_waits_at_its_end(gpu, images, ann):
    waits(gpu)
    assert evaluate(ann, images).count == 64
    assert waits(gpu) <= 2  # plan, scores


def test_deployed_spikes_are_those_of_the_cpu(gpu, images, ann):
    x = images.first(16)
    deployed = deploy(to_spiking(ann), compile=False)
    expected = deploy(to_spiking(copy.deepcopy(ann).cpu() if gpu is None else on_cpu(ann)), integer=False, compile=False)
    torch.testing.assert_close(deployed(x).cpu(), expected(x.cpu()), rtol=1e-5, atol=1e-5)


def on_cpu(network: Network) -> Network:
    """Return a copy of a pretended network on the CPU."""
    twin = small(2)
    twin.load_state_dict({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    return twin.eval()


@pytest.mark.parametrize("delay", [0, 1])
def test_conversion_calibration_and_comparison_stay_on_the_device(gpu, images, ann, delay):
    snn = to_spiking(ann, "unsigned", delay)
    calibrate_rates_(snn, ann, images.first(32), rounds=1)
    found = compare(ann, deploy(snn, compile=False), images)
    assert found["snn"].count == 64
    assert len(found["readout"]) == 3
    assert on_device(snn)


@pytest.mark.parametrize("online", [False, True])
def test_layerwise_tuning_stays_on_the_device(gpu, images, ann, online):
    snn = to_spiking(ann)
    units = finetune(snn, ann, images, images, FinetuneConfig(lr=0.01, online=online))
    assert len(units) == 4
    assert on_device(snn)


def test_global_tuning_stays_on_the_device(gpu, images, ann):
    snn = to_spiking(ann)
    network = RateNetwork(snn, compile=False)
    step = Step(network, sgd(network, 0.01, 0.9, 1e-4), teacher=ann)
    batches = list(images)
    step.begin()
    step(*batches[0], 0.01)
    waits(gpu)
    step(*batches[1], 0.01)
    assert waits(gpu) == 0
    assert on_device(snn)


@pytest.mark.parametrize("norm", ["step", "shared"])
def test_tuning_through_time_asks_nothing(gpu, images, ann, norm):
    network = ThroughTime(to_spiking(ann), TimeConfig(norm))
    step = Step(network, sgd(network, 0.01, 0.9, 1e-4, nesterov=True), amp=gpu is None, teacher=ann)
    batches = list(images)
    step.begin()
    step(*batches[0], 0.01)
    waits(gpu)
    step(*batches[1], 0.01)
    assert waits(gpu) == 0
    assert on_device(network)
    assert deploy(network.finished(), compile=False)(batches[0][0]).device == GPU


def test_energy_and_traces_stay_on_the_device(gpu, images, ann):
    snn, x = to_spiking(ann), images.first(4)
    rows = operations(ann, deploy(snn, compile=False), x)
    assert all(row.macs > 0 for row in rows)
    names = [name for name, _ in snn.units()][:2]
    assert [trace.name for trace in traces(snn, x[0], names)] == names


def test_the_scripts_run(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.config.SMOKE_BATCHES", 1)
    common = ["--arch", TINY, "--dataset", "digits", "--result", str(tmp_path), "-t", "-b", "16", "-id", "0"]
    trained = main.main([*common, "--bit", "2", "--lr", "1e-4"])
    start = ["--init", str(trained["directory"] / "model_best.pth.tar")]
    assert snn_script.main([*common, "--bit", "2", "-e", *start])["snn"].count == 16
    assert snn_ft.main([*common, "--bit", "2", "--method", "global", *start])["directory"].is_dir()
