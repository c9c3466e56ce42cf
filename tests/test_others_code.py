"""Other people's code and files: layers with two names, subclasses, code for training only, neighbours, foreign checkpoints."""

import argparse
import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, TINY_RUN
from PIL import Image
from torch import Tensor, nn

import main
import models
import snn
import snn_ft
from models import Network
from models.graph.calls import FollowsMode
from quant import QuantConv2d, quantize_
from utils.checkpoints.checkpoint import BEST, LAST, load_network, read_checkpoint, save_checkpoint, untuned
from utils.checkpoints.light import lighten
from utils.checkpoints.rundir import PAGES
from utils.data.cifar import load_images
from utils.data.image_files import list_images
from utils.data.imagenet_torchvision import Images
from utils.data.splits import Data
from utils.distributed.processes import Place
from utils.errors import UserError
from utils.report.subject import read_subject
from utils.training.loading import fitted

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Layers are the same in any order of the tests."""
    torch.manual_seed(0)


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1)


def net(*middle: nn.Module) -> nn.Sequential:
    """Return a network with layers of a test behind its first activation."""
    end = (conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, *end)


def same_in_both_modes(module: nn.Module) -> Network:
    """Return the network of a module after a comparison of both, in eval and in train mode, with their statistics after it."""
    network, module = Network(module), copy.deepcopy(module)
    assert torch.equal(network.eval()(IMAGES), module.eval()(IMAGES))
    outputs = []
    for either in (network, module):
        torch.manual_seed(1)
        outputs.append(either.train()(IMAGES))
    assert torch.equal(*outputs)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    return network


class TwoNames(nn.Module):
    """A layer that is also in a list, before or after it."""

    def __init__(self, list_first: bool):
        super().__init__()
        layer = nn.Conv2d(3, 8, 3)
        if list_first:
            self.convs = nn.ModuleList([layer])
        self.stem = layer
        if not list_first:
            self.convs = nn.ModuleList([layer])
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("list_first", [False, True])
def test_a_layer_with_two_names_stays(list_first):
    module = TwoNames(list_first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        quantized = quantize_(same_in_both_modes(module), 3)
    assert quantized.state_dict().keys() >= module.state_dict().keys()
    quantized.train()(IMAGES).sum().backward()
    assert module.stem.weight.grad is not None


def test_a_block_that_is_repeated_stays():
    quantized = quantize_(same_in_both_modes(net(*[nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())] * 3)), 3)
    assert sum(isinstance(module, QuantConv2d) for module in quantized.modules()) == 3  # the first, the block's, the last
    assert len(list(quantized.units())) == 5


class Padded(nn.Conv2d):
    """A subclass that only names its arguments."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)


class Norm(nn.BatchNorm2d):
    """A subclass with a method more."""

    def reset(self) -> None:
        self.reset_running_stats()


class Centred(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, padding=1)


def test_a_subclass_that_changes_nothing_is_quantized():
    quantized = quantize_(same_in_both_modes(net(Padded(8), Norm(8), nn.ReLU())), 3)
    assert type(quantized.layer("2")) is QuantConv2d
    assert quantized.layer("2").weight_quantizer.bits == 3


def test_a_weight_that_stays_float_is_told():
    with pytest.warns(UserWarning, match=r"^2\.weight keeps float weights: a function reads it"):
        quantized = quantize_(same_in_both_modes(net(Centred(8, 8, 3), nn.ReLU())), 3)
    assert type(quantized.layer("4")) is QuantConv2d
    whole = Centred(8, 8, 3)
    whole.leaf = True
    with pytest.warns(UserWarning, match="2 keeps float weights: of a Centred none are quantized"):
        quantize_(Network(net(whole, nn.ReLU())), 3)


class Frozen(nn.Module):
    """Batch normalisation that never learns."""

    def __init__(self):
        super().__init__()
        for name, value in (("mean", torch.rand(8)), ("var", torch.rand(8) + 0.5)):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=False)


class Asking(nn.BatchNorm2d):
    """Batch normalisation as many libraries write it."""

    def forward(self, x: Tensor) -> Tensor:
        use = self.training or not self.track_running_stats
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, use, self.momentum, self.eps)


class Dropped(nn.Module):
    """Dropout as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(("kind", "follows"), [(Frozen, False), (lambda: Asking(8), True), (Dropped, True)])
def test_a_function_follows_the_mode_only_where_the_code_does(kind, follows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = same_in_both_modes(net(kind()))
    assert any(isinstance(module, FollowsMode) for module in network.modules()) is follows


class DropPath(nn.Module):
    """A path that is dropped in training only."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1, 1, 1).gt(0.5) if self.training else x


def test_code_for_training_only_is_told():
    with pytest.warns(UserWarning, match="2 does otherwise in training, which is left out.*leaf = True") as told:
        Network(net(DropPath()))
    assert len(told) == 1
    whole = DropPath()
    whole.leaf = whole.affine_in_spikes = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = same_in_both_modes(net(whole))
    assert isinstance(network.layer("2"), DropPath)


class Builtin(nn.Module):
    """Dropout as a function of torch, which takes nothing but a bool."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, 0.5, self.training)


class HoldsAModule(nn.Module):
    """A network with a Python module among its attributes."""

    def __init__(self):
        super().__init__()
        self.functions, self.head = F, nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.functions.relu(x.flatten(1)))


class Pooled(nn.Module):
    """Max-pooling of the whole map, by its size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, x.size()[2:])


@pytest.mark.parametrize(("module", "named"), [
    (net(Builtin()), "pass self.training to functions of torch.nn.functional alone"), (HoldsAModule(), "cannot be copied"),
    (net(Pooled()), "max_pool2d takes its kernel_size from the size of a value.*adaptive_max_pool2d")])
def test_what_cannot_be_traced_is_named(module, named):
    with pytest.raises(ValueError, match=named):
        Network(module)


def test_axes_may_have_numpys_name():
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(axis=(2, 3), keepdim=True)

    network = same_in_both_modes(net(Mean()))
    assert "mean" in [node.target for part in network.graph.parts for node in part.nodes]


NETS = """
from torch import nn
import sys
sys.path.insert(0, {lib!r})
from models.small import small


def network(num_classes):
    import inside
    return small(num_classes)


def lazy(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


def seven(num_classes):
    return small(7)


class Named(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = small(num_classes)

    def forward(self, x):
        return {{"logits": self.inner(x)}}


def named(num_classes):
    return Named(num_classes)
"""
SMALL = """
from torch import nn
from utils import CHANNELS


def small(num_classes):
    head = nn.Linear(CHANNELS, num_classes)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
"""


@pytest.fixture(params=[False, True])
def project(tmp_path, request) -> Path:
    """Return a file whose neighbours have the names of packages of ours, with and without __init__.py."""
    (tmp_path / "models").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "models" / "small.py").write_text(SMALL)
    (tmp_path / "utils.py").write_text("CHANNELS = 5\n")
    (tmp_path / "lib" / "inside.py").write_text("")
    if request.param:
        (tmp_path / "models" / "__init__.py").write_text("")
    path = tmp_path / "nets.py"
    path.write_text(NETS.format(lib=str(tmp_path / "lib")))
    return path


def test_a_file_has_its_own_neighbours_and_we_keep_ours(project, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("models", "utils")}
    for _ in range(2):
        assert models.build(f"{project}:network").layer("0").out_channels == 5
    after = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("models", "utils")}
    assert after == before
    with pytest.raises(ValueError, match=r"lazy returns lazy layers.*call the network on images before"):
        models.build(f"{project}:lazy")


@pytest.mark.parametrize(("name", "named"), [("seven", r"outputs \[2, 7\]"), ("named", "outputs dict")])
def test_outputs_of_a_network_from_a_file_are_checked_too(project, few, monkeypatch, name, named):
    monkeypatch.setattr(sys, "path", list(sys.path))
    arch = f"{project}:{name}"
    torch.save(models.module(arch, "digits", 10).state_dict(), project.parent / "float.pth")
    for script, more in ((main, []), (main, ["-e"]), (snn, ["--bit", "3", "--fit", "16"])):
        with pytest.raises(UserError, match=named):
            script.main(["--arch", arch, "--dataset", "digits", "--init", str(project.parent / "float.pth"), *more,
                         "--result", str(project.parent / "r")])
    assert not list((project.parent / "r").glob("*/*.tar"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of random images in 2 classes."""
    for number, path in enumerate(tmp_path / split / kind / "0.png" for split in ("train", "test") for kind in "ab"):
        path.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(number).integers(256, size=(64, 64, 3)).astype(np.uint8)).save(path)
    return tmp_path


def test_images_of_a_size_that_one_of_our_networks_does_not_take(folder):
    with pytest.raises(UserError, match=r"--arch alex: fails on images \[2, 3, 64, 64\]"):
        main.main(["-a", "alex", "--dataset", "folder", "--data", str(folder), "--size", "64", "--result", str(folder / "r")])
    assert not list((folder / "r").glob("*/*"))


def test_images_of_16_bits_keep_their_upper_8(folder):
    values = np.random.default_rng(0).integers(65536, size=(32, 32)).astype(np.uint16)
    Image.fromarray(values).save(folder / "train" / "a" / "0.png")
    image = load_images("folder", folder, train=True, size=32).images[0]
    assert torch.equal(image, torch.from_numpy(values // 256).to(torch.uint8).expand(3, -1, -1))


    image, _ = Images(list_images(folder / "train"), augment=False, seed=0)[0]
    assert len(image.unique()) > 100


def test_images_of_other_kinds_are_not_passed_over(folder):
    Image.new("RGB", (32, 32)).save(folder / "train" / "a" / "1.webp")
    (folder / "train" / "a" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"1\.webp is no \.JPEG, \.jpg or \.png"):
        list_images(folder / "train")


def test_each_process_fits_on_as_many_images_as_the_flag_says(folder, capsys):
    (folder / "net.py").write_text("""
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
""")
    arch = f"{folder / 'net.py'}:net"
    torch.save(models.module(arch, "imagenet", 1000).state_dict(), folder / "float.pth")
    settings = snn.parse(["-a", arch, "--bit", "3", "--init", str(folder / "float.pth"), "--fit", "1", "--result", str(folder),
                          "--loader", "torchvision", "-j", "0", str(folder / "train"), str(folder / "test")])
    data = Data(settings.data, torch.device("cpu"), Place(0, 0, 2))
    data.classes = 1000
    fitted(settings, data)
    assert "fitted on 1 training images" in capsys.readouterr().out


def test_a_network_that_was_trained_anew_is_not_the_ann_of_an_older_tuning(few, tmp_path, capsys):
    flags = ["-a", TINY, "--bit", "2", "--dataset", "digits", "-b", "16", "--result", str(tmp_path)]
    main.main([*flags, "--epochs", "1"])
    tuned = snn_ft.main([*flags, "--method", "global", "--epochs", "1", "--check-images", "16"])["directory"] / BEST
    snn.main([*flags, "-e", "--init", str(tuned)])
    assert "serve as the ANN" not in capsys.readouterr().out
    main.main([*flags, "--epochs", "1", "--seed", "5", "--overwrite"])
    snn.main([*flags, "-e", "--init", str(tuned)])
    assert "is no longer the network that" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is no longer the network that.*tuning learns from it"):
        snn_ft.main([*flags, "--method", "global", "--init", str(tuned), "--result", str(tmp_path / "again")])
    for run, names in ((tuned.parent, ["signed, global"]), (tmp_path / f"{TINY_RUN}_2bit", [])):
        subject = read_subject(run, TINY)
        assert [one.name for one in subject.tuned] == names
        assert ["is no longer the network that" in note for note in subject.notes] == [True]


def test_the_file_beside_a_tuned_one_is_its_start_whatever_lies_where_it_was(tmp_path):
    elsewhere = tmp_path / "run" / BEST
    elsewhere.parent.mkdir()
    tuned, beside = (tmp_path / f"net{suffix}.pth.tar" for suffix in ("_ft", ""))
    contents = {"format": 1, "arch": "resnet20", "bit": 2, "finetune": {}, "args": {"init": str(elsewhere)}}
    save_checkpoint(tuned, contents)
    save_checkpoint(elsewhere, {})
    assert untuned(tuned) == elsewhere
    save_checkpoint(beside, {})
    assert untuned(tuned) == beside


@pytest.fixture
def tuning(few, tmp_path) -> list[str]:
    """Return the flags of a finished tuning with its own normalisation, of two epochs and as a whole."""
    flags = ["-a", TINY, "--bit", "2", "--dataset", "digits", "-b", "16", "--result", str(tmp_path)]
    main.main([*flags, "--epochs", "1", "--mean", ".4", ".4", ".4", "--std", ".2", ".2", ".2"])
    how = [*flags, "--method", "global", "--check-images", "16"]
    snn_ft.main([*how, "--epochs", "2", "--mean", ".5", ".5", ".5", "--std", ".3", ".3", ".3"])
    return how


def test_a_tuned_network_keeps_the_normalisation_that_it_was_tuned_with(tuning, tmp_path):
    assert read_checkpoint(tmp_path / f"{TINY_RUN}_2bit_ft_global" / BEST)["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("more", "named"), [
    (["--epochs", "1"], "--epochs: the run in .* is finished"), (["--lr", "0.5"], "--lr: the run in .* is finished"),
    (["--epochs", "3", "--calibrate", "16"], "--calibrate 16: the run in .* was calibrated on 0 images")])
def test_flags_that_come_too_late_are_refused(tuning, tmp_path, more, named):
    config = tmp_path / f"{TINY_RUN}_2bit_ft_global" / "config.json"
    before = config.read_text()
    with pytest.raises(UserError, match=named):
        snn_ft.main([*tuning, "--resume", *more])
    assert config.read_text() == before
    assert snn_ft.main([*tuning, "--resume", "-b", "8"])["after"] >= 0  # scored again


def test_a_lightened_tuning_does_not_go_on_without_its_momenta(tuning, tmp_path):
    lighten(tmp_path / f"{TINY_RUN}_2bit_ft_global" / LAST)
    snn_ft.main([*tuning, "--resume"])  # scored again
    lighten(tmp_path / f"{TINY_RUN}_2bit_ft_global" / LAST)
    with pytest.raises(UserError, match=r"has no momenta any more.*--overwrite"):
        snn_ft.main([*tuning, "--resume", "--epochs", "3"])


def test_calibration_takes_as_many_images_as_the_flag_says(few, tmp_path, capsys):
    flags = ["-a", TINY, "--bit", "2", "--dataset", "digits", "-b", "16", "--result", str(tmp_path)]
    main.main([*flags, "--epochs", "1"])
    snn_ft.main([*flags, "--method", "global", "--check-images", "16", "--tune-images", "16", "--calibrate", "24"])
    assert "calibrated on 24 training images" in capsys.readouterr().out


def test_a_new_run_leaves_no_page_of_the_old_one(few, tmp_path):
    flags = ["-a", TINY, "--bit", "2", "--dataset", "digits", "-b", "16", "--result", str(tmp_path)]
    run = main.main([*flags, "--epochs", "1"])["directory"]
    for page in PAGES:
        (run / page).write_text("of the old run")
    main.main([*flags, "--epochs", "1", "--overwrite"])
    assert not any((run / page).exists() for page in PAGES)


def test_checkpoints_of_other_tools_load_or_are_explained(tmp_path):
    module = models.module("torchvision:resnet18", "cifar10", 10)
    state = module.state_dict()
    torch.save({f"_orig_mod.module.{name}": value for name, value in state.items()}, tmp_path / "compiled.pth")
    loaded = load_network(tmp_path / "compiled.pth", "torchvision:resnet18").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "prefixed.pth")
    with pytest.raises(UserError, match=r'Missing key.*"conv1.weight".*\.\.\..*Unexpected key.*"backbone.conv1.weight"'):
        load_network(tmp_path / "prefixed.pth", "torchvision:resnet18")
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "args.pth")
    with pytest.raises(UserError, match=r"holds an object of argparse\.Namespace.*save the module's state_dict\(\) alone"):
        read_checkpoint(tmp_path / "args.pth")
