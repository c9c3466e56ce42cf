"""Files of a network: onnxruntime, which knows nothing of us, computes the same."""

import io
import json
import sys
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import main
from models import Network
from quant import common_step, fit_, quantize_
from snn_layers import deploy, to_spiking
from snn_layers.export import METADATA, network_file
from snn_layers.export.network import exported
from utils.checkpoints.leaving import check_export
from utils.errors import UserError

ONNX = Path("network.onnx")


class Run:
    """A file in onnxruntime."""

    def __init__(self, contents: bytes):
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -r requirements-export.txt")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = runtime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.session.run(None, {"images": images.float().numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(self.names, found, strict=True)}


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether logits differ by at most 1e-5 of the largest: a single other spike would change more."""
    return found.shape == wanted.shape and (found.double() - wanted.double()).abs().max() <= 1e-5 * wanted.abs().max()


def fit(module: nn.Module, bit: int, size: tuple[int, ...]) -> Network:
    return fit_(quantize_(Network(module), bit), torch.randn(24, *size)).eval()


@pytest.mark.parametrize("bit", [2, 3, 4])
def test_the_quantized_network_is_the_float64_run(bit):
    pytest.importorskip("onnx", reason="onnx is not installed")
    torch.manual_seed(bit)
    network = fit(Plain(), bit, (3, 12, 10))
    run = Run(network_file(network, ONNX, (3, 12, 10), {}))
    images = torch.randn(40, 3, 12, 10)
    wanted = network.double()(images.double())
    assert close(run(images)["logits"], wanted)
    assert close(run(images[:1])["logits"], wanted[:1])


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("neuron", ["signed", "unsigned"])
def test_each_readout_of_the_spiking_network_is_the_deployed_one_s(small, neuron, delay):
    pytest.importorskip("onnx", reason="onnx is not installed")
    snn = to_spiking(small, neuron, delay)
    run = Run(network_file(snn, ONNX, (3, 9, 7), {}))
    fast = deploy(snn, compile=False)
    for count in (1, 5, 16):
        images = torch.randn(count, 3, 9, 7)
        found = run(images)
        assert found["readouts"].shape == (3, count, 5)
        assert close(found["readouts"], fast.readouts(images))
        assert close(found["logits"], fast(images))


@pytest.mark.parametrize(("steps", "start"), [(1, 0.5), (2, 0.5), (3, 0)])
def test_early_readout_and_another_start(small, steps, start):
    pytest.importorskip("onnx", reason="onnx is not installed")
    snn = to_spiking(small, steps=steps, start=start)
    images = torch.randn(6, 3, 9, 7)
    found = Run(network_file(snn, ONNX, (3, 9, 7), {}))(images)
    assert close(found["readouts"], deploy(snn, compile=False).readouts(images))


class Plain(nn.Module):
    """Padding that is not even, groups, dilation, a hidden linear layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 8, (3, 2), padding="same", groups=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, dilation=2, padding=1, padding_mode="circular"), nn.ReLU())
        self.classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self(torch.zeros(2, 3, 12, 10))

    def forward(self, x):
        return self.classifier(self.features(x))


class Branches(nn.Module):
    """Concatenation, a shared sum without activation, pools that cannot move, a channel shuffle, upsampling, several heads."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1, bias=False)
        self.narrow, self.wide = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 16, 1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pool, self.mean, self.up = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
        self.norm, self.last, self.head, self.other = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        both = torch.cat((self.left(x).relu(), self.right(x).relu()), 1)
        linear = self.narrow(both) + x
        x = nn.functional.relu6(self.wide(linear))
        x = nn.functional.relu(self.norm(self.depth(x)))
        x = torch.nn.functional.channel_shuffle(x, 4)
        x = self.last(self.mean(x) + self.up(self.pool(self.pool(x)))[:, :, :6, :5]).relu() + self.narrow(both).mean()
        x = x.mean((2, 3))
        return {"digit": self.head(x).log_softmax(1), "colour": self.other(x)}


@pytest.mark.parametrize("kind", ["ann", "signed", "unsigned"])
def test_branches_pools_and_several_outputs(kind):
    pytest.importorskip("onnx", reason="onnx is not installed")
    torch.manual_seed(0)
    network = fit(Branches(), 3, (3, 24, 20))
    images = torch.randn(9, 3, 24, 20)
    if kind == "ann":
        found = Run(network_file(network, ONNX, (3, 24, 20), {}))(images)
        wanted = network.double()(images.double())
        assert found.keys() == {"logits.digit", "logits.colour"}
        assert all(close(found[f"logits.{name}"], value) for name, value in wanted.items())
        return
    snn = to_spiking(network, kind)
    found, wanted = Run(network_file(snn, ONNX, (3, 24, 20), {}))(images), deploy(snn, compile=False).readouts(images)
    assert all(close(found[f"readouts.{name}"], value) for name, value in wanted.items())


def test_weights_are_bytes_and_the_file_says_what_it_is(small):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    told = {"architecture": "resnet20", "bits": 2, "mean": [0.5, 0.25, 0.5], "accuracy": None}
    model = onnx.load_from_string(network_file(small, ONNX, (3, 9, 7), told))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "architecture": "resnet20", "bits": "2", "mean": "[0.5, 0.25, 0.5]"}
    small_types = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    sizes = {constant.name: (onnx.numpy_helper.to_array(constant).size, constant.data_type) for constant in model.graph.initializer}
    weights = sum(parameter.numel() for name, parameter in small.named_parameters() if parameter.dim() > 1)
    assert sum(size for size, kind in sizes.values() if kind in small_types) >= weights
    assert sum(node.op_type == "ConvInteger" for node in model.graph.node) == 5  # four units and a shortcut
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert axis.dim_param == "batch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_of_integers_is_found_and_none_of_other_numbers(dtype):
    torch.manual_seed(0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    for largest in (1, 4, 10, 127, 255):
        numerators = torch.randint(-largest, largest + 1, (40, 9))
        numerators[0, :2] = torch.tensor([largest, largest - 1])
        step = torch.rand((), dtype=torch.float64) + 0.01
        found = common_step((numerators * step).to(dtype).double(), tolerance)
        assert found == pytest.approx(step.item(), rel=1e-6)
        assert common_step(torch.randn(40, 9, dtype=dtype).double(), tolerance) is None
    assert common_step(torch.zeros(3, dtype=torch.float64)) == 1.0


def test_a_program_for_torch_alone_is_bit_equal(small):
    for network in (small, to_spiking(small)):
        contents = network_file(network, Path("network.pt2"), (3, 9, 7), {"classes": 5})
        extra = {METADATA: ""}
        program = torch.export.load(io.BytesIO(contents), extra_files=extra).module()
        assert json.loads(extra[METADATA]) == {"classes": "5"}
        images = torch.randn(4, 3, 9, 7)
        wanted = exported(network)(images)
        found = program(images)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_program_has_no_trick_of_our_compiler(small):
    with torch.no_grad():
        program = torch.export.export(exported(to_spiking(small)), (torch.randn(2, 3, 9, 7),))
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert torch.uint8 in {value.dtype for value in values}
    assert all(value.itemsize > 1 or value.dtype in (torch.uint8, torch.bool) for value in values)


def test_what_leaves_is_what_runs_here(small):
    images = torch.randn(8, 3, 9, 7)
    assert close(exported(small)(images)["logits"], small.double()(images.double()))
    snn = to_spiking(small.float())
    assert close(exported(snn)(images)["readouts"], deploy(snn, compile=False).readouts(images))


class Odd(nn.Module):
    """An operator after the last ReLU that ONNX lacks."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return torch.special.i0(self.head(self.conv(x).relu().mean((2, 3))))


def test_an_operator_without_counterpart_is_refused_by_name():
    pytest.importorskip("onnx", reason="onnx is not installed")
    network = fit(Odd(), 2, (3, 6, 6))
    with pytest.raises(ValueError, match="readout: the operator i0 has no known counterpart in ONNX"):
        network_file(network, ONNX, (3, 6, 6), {})


def test_what_cannot_leave_is_refused(small, monkeypatch):
    with pytest.raises(ValueError, match=r"network\.h5: a network is written as \.onnx or \.pt2"):
        network_file(small, Path("network.h5"), (3, 9, 7), {})
    with pytest.raises(ValueError, match="a float network has no thresholds"):
        network_file(Network(Odd()), Path("a.pt2"), (3, 6, 6), {})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"network\.onnx needs the package onnx: pip install -r requirements-export\.txt"):
        network_file(small, ONNX, (3, 9, 7), {})


def test_the_example_scores_as_pytorch_does(small, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    example = run_path(str(ROOT / "examples" / "run_onnx.py"))["main"]
    draw = np.random.RandomState(0)
    records = draw.randint(0, 256, (130, 3073)).astype(np.uint8)
    records[:, 0] %= 5
    records.tofile(tmp_path / "batch.bin")
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255 - 0.5) / 0.25
    told = {"architecture": "resnet20", "bits": 2, "pixel_mean": [0.5] * 3, "pixel_std": [0.25] * 3, "accuracy": 20.0,
            "accuracy_on": "0 test images"}
    for network, outputs in ((small, exported(small)(pixels)["logits"][None]), (to_spiking(small), None)):
        outputs = exported(network)(pixels)["readouts"] if outputs is None else outputs
        (tmp_path / "network.onnx").write_bytes(network_file(network, ONNX, (3, 32, 32), told))
        wanted = (outputs.argmax(-1) == torch.from_numpy(records[:, 0])).double().mean(-1) * 100
        assert example(str(tmp_path / "network.onnx"), str(tmp_path / "batch.bin")) == pytest.approx(wanted.tolist())


def test_mistakes_of_the_flag_are_one_line(tmp_path):
    flags = ["--arch", "resnet20", "--bit", "2", "--export"]
    with pytest.raises(UserError, match=r"--export a\.onnx: writes the network that -e evaluates; add -e"):
        main.parse([*flags, "a.onnx"])
    with pytest.raises(UserError, match=r"--export a\.onnx: says the accuracy on all images; leave -t and --prof out"):
        main.parse([*flags, "a.onnx", "-e", "-t"])
    for name, reason in (("a.h5", r"is written as \.onnx or \.pt2"), ("none/a.pt2", "none is no directory; make it first")):
        with pytest.raises(UserError, match=reason):
            check_export(main.parse([*flags, str(tmp_path / name), "-e"]).run.export)
