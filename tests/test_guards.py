"""Numbers that cannot be right are caught with the layer's name; inputs of any kind are computed right or refused."""

import copy
import re

import pytest
import torch
from torch import nn

import main
from models import build
from quant import fault, fit_, quantize_
from snn_layers import FinetuneConfig, deploy, finetune, to_spiking
from utils.checkpoints.checkpoint import LAST, load_network, network_state, read_checkpoint
from utils.errors import UserError
from utils.training.engine import sgd, train_epoch
from utils.training.guards import Note
from utils.training.step import Step

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(6)
FAULTS = [
    ("body.3.part1.activation.threshold", 0.0, "body.3.part1.activation.threshold is 0"),
    ("body.3.part1.activation.threshold", -0.5, "body.3.part1.activation.threshold is -0.5"),
    ("body.0.activation.threshold", float("nan"), "body.0.activation.threshold holds NaN"),
    ("body.2.part2.conv.weight_quantizer.alpha", 0.0, "body.2.part2.conv.weight_quantizer.alpha is 0"),
    ("body.2.part2.conv.weight", 0.25, "body.2.part2.conv.weight has no variance, all its values are 0.25"),
    ("body.4.part2.shortcut.conv.weight", 0.0, "body.4.part2.shortcut.conv.weight has no variance"),
    ("body.0.conv.weight", -1.0, "body.0.conv.weight has the maximum -1"),
    ("head.weight", 0.0, "head.weight has the maximum 0"),
    ("head.bias", float("inf"), "head.bias holds NaN or infinity"),
    ("body.5.part1.bn.running_var", 0.0, "body.5.part1.bn has the variance 0 in channel 0"),
    ("body.5.part1.bn.running_var", -1.0, "body.5.part1.bn has the variance -1"),
    ("body.4.part2.shortcut.bn.running_var", float("nan"), "body.4.part2.shortcut.bn.running_var holds NaN"),
]


def spoil(network: nn.Module, name: str, value: float) -> None:
    network.state_dict()[name].fill_(value)


@pytest.mark.parametrize(("name", "value", "named"), FAULTS)
def test_faults_are_named_on_saving_loading_and_converting(quantized, tmp_path, name, value, named):
    contents = copy.deepcopy(network_state(quantized))
    contents["state_dict"][name].fill_(value)
    torch.save(contents, tmp_path / "net.pth")
    with pytest.raises(UserError, match=rf"net\.pth: {re.escape(named)}"):
        load_network(tmp_path / "net.pth")
    spoil(quantized, name, value)
    with pytest.raises(ValueError, match=re.escape(named)):
        to_spiking(quantized)
    with pytest.raises(UserError, match=rf"not saved: {re.escape(named)}.*lower --lr"):
        network_state(quantized)


def test_a_variance_of_0_in_one_channel_is_named_unless_it_only_saw_zeros(quantized):
    bn = quantized.body[5].part1.bn
    assert fault(quantized) is None
    bn.running_var[3] = 0
    assert fault(quantized) == "body.5.part1.bn has the variance 0 in channel 3"
    bn.running_mean[3] = 0  # as in a channel whose weights have all become 0
    assert fault(quantized) is None


def test_a_channel_without_weights_trains_and_is_no_fault():
    torch.manual_seed(0)
    network = build("resnet18")
    network.body[1].part1.conv.weight.data[5] = 0
    network = quantize_(fit_(network, IMAGES), 2)  # its hidden weights are float
    assert network.body[1].part1.bn.running_var[5] == 0
    assert fault(network) is None
    images = to_spiking(network)(IMAGES)
    assert images.isfinite().all()


def batches(count: int, spoiled: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(IMAGES * (torch.nan if step == spoiled else 1), LABELS) for step in range(count)]


def train(network: nn.Module, data: list, lr: float = 0.01) -> None:
    train_epoch(Step(network, sgd(network, lr, 0.9, 0)), data, lambda _: lr, name="epoch 3/9")


def test_nan_in_the_images_stops_before_it_spreads(quantized):
    unbroken = copy.deepcopy(quantized)
    with pytest.raises(UserError, match=r"the loss is nan: the images hold NaN.*\(batch 2 of epoch 3/9\): lower --lr"):
        train(quantized, batches(4, spoiled=2))
    train(unbroken, batches(2))
    assert all(torch.equal(a, b) for a, b in zip(quantized.parameters(), unbroken.parameters(), strict=True))


def test_the_noted_images_stay_at_their_address_when_a_larger_batch_comes():
    """A captured step goes on writing there."""
    note = Note(torch.device("cpu"))
    loss, sound = torch.zeros(()), torch.tensor(True)
    note.take(IMAGES[:2], loss, sound)
    kept = note.images
    note.take(IMAGES[:3], loss, torch.tensor(False))
    note.take(IMAGES[3:], loss, sound)
    assert note.images is kept
    assert torch.equal(kept, IMAGES[:2])
    assert note.read()[:3] == [1, 1, 1]


def test_the_first_layer_that_overflows_is_named():
    network = build("resnet20")
    network.body[4].part1.bn.weight.data.fill_(3e38)
    with pytest.raises(UserError, match=r"body\.4\.part1\.bn is the first layer whose output holds NaN .*\(batch 0 of.*lower --lr"):
        train(network, batches(1))


@pytest.mark.parametrize(("name", "value", "named"), [row for row in FAULTS if "running" not in row[0]])
def test_faults_of_parameters_stop_training(quantized, name, value, named):
    spoil(quantized, name, value)
    with pytest.raises(UserError, match=rf"{re.escape(named)}.*\(batch 0 of epoch 3/9\): lower --lr"):
        train(quantized, batches(1))


def test_a_threshold_that_falls_to_0_stops_the_next_batch(quantized):
    threshold = quantized.body[2].part1.activation.threshold
    threshold.register_hook(lambda grad: torch.full_like(grad, 1e6))
    with pytest.raises(UserError, match=r"body\.2\.part1\.activation\.threshold is -.*batch 1 of"):
        train(quantized, batches(3))


def test_a_diverging_run_keeps_the_checkpoint_before_it(tiny, tmp_path):
    flags = ["-a", "resnet20", "--bit", "2", "-b", "16", "--data", str(tiny), "--result", str(tmp_path)]
    main.main([*flags, "--epochs", "1", "--lr", "0.01"])
    before = read_checkpoint(tmp_path / "resnet20_2bit" / LAST)
    with pytest.raises(UserError, match=r"batch [12] of epoch 2/3"):
        main.main([*flags, "--epochs", "3", "--lr", "1e30", "--resume"])
    after = read_checkpoint(tmp_path / "resnet20_2bit" / LAST)
    assert after["history"] == before["history"]
    assert all(torch.equal(before["state_dict"][key], after["state_dict"][key]) for key in before["state_dict"])
    assert main.main([*flags, "--epochs", "2", "--lr", "0.01", "--resume"])["last"]["epoch"] == 1


def test_tuning_that_diverges_names_the_unit(quantized):
    data = [(IMAGES, LABELS), (IMAGES * torch.nan, LABELS)]
    with pytest.raises(ValueError, match=r"images hold NaN"):
        finetune(to_spiking(quantized), quantized, data, [], FinetuneConfig())
    with pytest.raises(ValueError, match=r"conv\.weight holds NaN or infinity after body\.1\.part1, epoch 1/1"):
        finetune(to_spiking(quantized), quantized, [(IMAGES, LABELS)] * 9, [], FinetuneConfig(lr=1e38, online=True))


LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "reversed in memory": lambda x: x.flip(0).contiguous().flip(0),
    "shared": lambda x: x.clone().as_strided(x.shape, x.stride()),
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 5])
def test_any_layout_and_batch_gives_the_same_and_stays_as_it_was(small, layout, count):
    snn, images = to_spiking(small), LAYOUTS[layout](IMAGES[:count])
    kept, strides = images.clone(), images.stride()
    for network in (small, snn, deploy(snn, compile=False), deploy(snn, chunk=2, compile=False)):
        torch.testing.assert_close(network(images), network(IMAGES)[:count], rtol=1e-5, atol=1e-5)
        assert torch.equal(images, kept)
        assert images.stride() == strides


@torch.no_grad()
def test_one_image_expanded_to_a_batch(quantized):
    images = IMAGES[:1].expand(5, -1, -1, -1)
    for network in (to_spiking(quantized), deploy(to_spiking(quantized), compile=False)):
        torch.testing.assert_close(network(images), network(IMAGES[:1]).expand(5, -1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 31), (1, 1), (7, 65)])
def test_odd_sizes(quantized, size):
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    snn = to_spiking(quantized)
    exact = to_spiking(copy.deepcopy(quantized).double())(images.double())
    torch.testing.assert_close(deploy(snn, compile=False)(images).double(), exact, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16,
                                   torch.float64])
def test_other_dtypes_are_computed_right_or_refused(quantized, dtype):
    """Pixels as bytes were once taken for normalised images by the deployed network."""
    snn, images = to_spiking(quantized), IMAGES.to(dtype)
    for network in (quantized, snn):
        with pytest.raises(Exception, match=r"type|dtype|implemented"):  # torch's own words
            network(images)
    deployed = deploy(snn, compile=False)
    if not dtype.is_floating_point:
        with pytest.raises(ValueError, match=rf"images are {dtype}.*normalised"):
            deployed(images)
    else:
        assert torch.equal(deployed(images), deployed(images.float()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_spikes_right_or_not_at_all(quantized, dtype):
    """Plain layers would round currents to 8 or 11 bits; a deployed network computes its spikes exactly, from the half weights."""
    snn = to_spiking(quantized)
    exact = to_spiking(copy.deepcopy(quantized).double())(IMAGES.double())
    with torch.autocast("cpu", dtype):
        with pytest.raises(ValueError, match=r"float16 has too few bits"):
            snn(IMAGES)
        logits = deploy(snn, compile=False)(IMAGES)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-4)
    half = to_spiking(copy.deepcopy(quantized).to(dtype))
    with pytest.raises(ValueError, match=r"float16 has too few bits"):
        half(IMAGES.to(dtype))


@torch.no_grad()
def test_no_images_and_nan_are_refused(quantized):
    snn = to_spiking(quantized)
    deployed = deploy(snn, compile=False)
    for images in (IMAGES[:0], IMAGES[0]):
        with pytest.raises(ValueError, match=r"images are torch.float32 of shape"):
            deployed(images)
    spoiled = IMAGES.clone()
    spoiled[2, 1, 3, 4] = torch.nan
    for network in (snn, deployed):
        with pytest.raises(ValueError, match="NaN"):
            network(spoiled)
