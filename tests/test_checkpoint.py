"""Our checkpoints and the published ones: whole, strict, named errors."""

import os
import pickle
import re
import subprocess

import pytest
import torch

import models
from quant import fit_, quantize_
from utils.checkpoints import checkpoint
from utils.checkpoints.checkpoint import load_network, network_state, read_checkpoint, save_checkpoint
from utils.data.cifar import TensorLoader, load_images
from utils.errors import UserError
from utils.training.engine import evaluate


@pytest.fixture
def path(tmp_path, quantized):
    save_checkpoint(tmp_path / "net.pth.tar", network_state(quantized))
    return tmp_path / "net.pth.tar"


def test_a_checkpoint_rebuilds_its_network(path, quantized):
    images = torch.randn(2, 3, 32, 32)
    network = load_network(path)
    assert (network.arch, network.dataset, network.bit) == ("resnet20", "cifar10", 2)
    assert not network.training
    assert torch.equal(network(images), quantized(images))


def test_number_of_classes_and_weight_bits_come_back(tmp_path):
    network = quantize_(models.build("resnet20", "cifar100", num_classes=37), 3, weight_bit=5)
    save_checkpoint(tmp_path / "net", network_state(network))
    loaded = load_network(tmp_path / "net")
    assert (loaded.num_classes, loaded.weight_bit, loaded.head.out_features) == (37, 5, 37)
    assert loaded.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize(("expected", "named"), [
    ({"arch": "resnet56"}, "holds arch resnet20, not resnet56"), ({"bit": 3}, "holds bit 2, not 3"),
    ({"dataset": "cifar100"}, "holds dataset cifar10, not cifar100")])
def test_another_network_than_expected_is_an_error(path, expected, named):
    with pytest.raises(UserError, match=named):
        load_network(path, **expected)


def test_unknown_and_missing_keys_are_errors(tmp_path, quantized):
    contents = network_state(quantized)
    state = contents["state_dict"]
    for kind, changed in (("Unexpected", {**state, "extra": torch.zeros(1)}),
                          ("Missing", {key: value for key, value in state.items() if key != "head.bias"}),
                          ("size mismatch", {**state, "head.bias": torch.zeros(3)})):
        save_checkpoint(tmp_path / "net", contents | {"state_dict": changed})
        with pytest.raises(UserError, match=kind):
            load_network(tmp_path / "net")


def test_damaged_files_are_named(path, tmp_path):
    whole = path.read_bytes()
    for number, content in enumerate((b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:-100], whole[:100])):
        damaged = tmp_path / f"damaged{number}"
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=f"damaged{number}.*damaged or of no known kind"):
            read_checkpoint(damaged)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("contents", [{"state_dict": torch.zeros(1)}, {"format": 1}, {1: torch.zeros(1)}, {}, {"state_dict": None}])
def test_foreign_contents_are_named(tmp_path, contents):
    torch.save(contents, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match=r"foreign\.pth"):
        load_network(tmp_path / "foreign.pth", "resnet20", 3)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(UserError, match="damaged or of no known kind"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_an_interrupted_write_leaves_the_old_checkpoint(path, quantized, monkeypatch):
    old = path.read_bytes()

    def half(contents, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(path, network_state(quantized))
    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == ["net.pth.tar"]


def test_a_newer_format_is_refused(path):
    contents = read_checkpoint(path) | {"format": 99}
    save_checkpoint(path, contents)
    with pytest.raises(UserError, match="format 99"):
        load_network(path)


def test_published_names_lose_only_a_leading_module(recorded, tmp_path):
    _, state = recorded("cifar10_alex_3bit")
    for prefix in ("", "module."):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "net.pth")
        network = load_network(tmp_path / "net.pth", "alex", 3)
        assert torch.equal(network.head.weight, state["layer7.block.weight"])
    torch.save({key.replace("layer7", "module.layer7"): value for key, value in state.items()}, tmp_path / "net.pth")
    load_network(tmp_path / "net.pth", "alex", 3)
    torch.save({key.replace("layer7.", "layer7.module."): value for key, value in state.items()}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="layer7"):
        load_network(tmp_path / "net.pth", "alex", 3)


@pytest.mark.parametrize(("arch", "bit", "named"), [
    ("alex", 32, "lacks layer1"), ("alex", None, "pass bit"), (None, 3, "pass arch"), ("vgg11", 3, "lacks layer7.*more"),
    ("resnet20", 3, "lacks layer0"), ("nonsense", 3, "unknown architecture 'nonsense'")])
def test_published_files_of_other_networks_are_refused(recorded, tmp_path, arch, bit, named):
    torch.save(recorded("cifar10_alex_3bit")[1], tmp_path / "net.pth")
    with pytest.raises(UserError, match=named):
        load_network(tmp_path / "net.pth", arch, bit)


def test_a_published_key_too_many_or_too_few_is_named(recorded, tmp_path):
    _, state = recorded("cifar10_res_resnet20_3bit")
    torch.save(state | {"layer9.surplus": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"has unknown layer9\.surplus"):
        load_network(tmp_path / "net.pth", "resnet20", 3)
    del state["layer2.0.part2.downsample.1.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"lacks layer2\.0\.part2\.downsample\.1\.bias"):
        load_network(tmp_path / "net.pth", "resnet20", 3)


def test_classes_of_a_published_file_choose_the_data_set(recorded, tmp_path):
    _, state = recorded("cifar10_res_resnet20_3bit")
    state |= {"layer4.block.2.weight": torch.ones(100, 64), "layer4.block.2.bias": torch.zeros(100)}
    torch.save(state, tmp_path / "net.pth")
    network = load_network(tmp_path / "net.pth", "resnet20", 3)
    assert (network.dataset, network.num_classes) == ("cifar100", 100)
    with pytest.raises(UserError, match="has 100 classes, cifar10 has 10"):
        load_network(tmp_path / "net.pth", "resnet20", 3, "cifar10")


def test_apot_quantized_networks_serve_as_a_start_for_training(find):
    network = load_network(find("checkpoints/apot_resnet20_4bit.pth.tar"), "resnet20", 4)
    assert network.trainable_start
    thresholds = [relu.threshold.item() for _, relu in network.units()]
    assert thresholds[-1] == 6  # APoT's belong to the conv that reads the activation, and no conv reads the last one
    assert len(set(thresholds[:-1])) == 18
    fit_(network, torch.randn(8, 3, 32, 32))


def test_an_apot_file_for_a_plain_network_names_what_is_missing(find):
    with pytest.raises(UserError, match="lacks layer1"):
        load_network(find("checkpoints/apot_resnet20_float.pth.tar"), "alex", 32)


def test_the_published_float_network_scores_9296_on_the_test_set(find):
    path = find("checkpoints/apot_resnet20_float.pth.tar")
    root = find("data/cifar-10-batches-bin").parent
    batches = TensorLoader(load_images("cifar10", root, train=False), 500, augment=False)
    scores = evaluate(load_network(path, "resnet20"), batches)
    assert scores.count == 10_000
    assert round(scores.top1, 2) == 92.96


def test_the_revision_marks_changed_code_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "utils" / "code.py"))
    revision = checkpoint.revision.__wrapped__  # without the cache of its first call
    assert revision() == "unknown"
    files = [tmp_path / name for name in ("utils/code.py", "result/table.json", "README.md")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("a")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    clean = revision()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    for file in files[1:]:
        file.write_text("b")
    assert revision() == clean
    files[0].write_text("b")
    assert revision() == clean + "+"
