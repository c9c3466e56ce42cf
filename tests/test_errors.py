"""A user's mistake is one line on stderr that names the value and the remedy, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
import models
import snn
import snn_ft
from quant import quantize_
from utils import script
from utils.checkpoint import network_state, save_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a directory with a 3-bit checkpoint, a truncated one, and damaged data."""
    root = tmp_path_factory.mktemp("mistakes")
    network = quantize_(models.build("resnet20", "digits"), 3)
    save_checkpoint(root / "good.pth.tar", network_state(network))
    (root / "truncated.pth.tar").write_bytes((root / "good.pth.tar").read_bytes()[:5000])
    (root / "empty").mkdir()
    (root / "short" / "cifar-10-batches-bin").mkdir(parents=True)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (root / "short" / "cifar-10-batches-bin" / name).write_bytes(bytes(3073 * 2 - 5))
    (root / "locked").mkdir(mode=0o500)
    (root / "file").write_text("in the way")
    (root / "resnet20_3bit_ft").mkdir()
    save_checkpoint(root / "resnet20_3bit_ft" / "checkpoint.pth.tar", network_state(network))
    return root


MISTAKES = {
    "missing checkpoint": ("snn.py -a resnet20 --bit 3 --init {}/none.pth.tar", "none.pth.tar does not exist"),
    "nothing trained yet": ("snn_ft.py -a resnet20 --bit 3 --result {}/empty", "model_best.pth.tar does not exist"),
    "nothing to resume": ("main.py -a resnet20 --bit 3 --resume --result {}/empty", "checkpoint.pth.tar does not exist"),
    "truncated checkpoint": ("main.py -a resnet20 --bit 3 -e --init {}/truncated.pth.tar", "damaged or of no known kind"),
    "another architecture": ("snn.py -a resnet56 --bit 3 --dataset digits --init {}/good.pth.tar", "arch resnet20, not resnet56"),
    "another bit-width": ("snn.py -a resnet20 --bit 4 --dataset digits --init {}/good.pth.tar", "holds bit 3, not 4"),
    "float": ("snn.py -a resnet20 --dataset digits --init {}/good.pth.tar", "--bit 2 to 8"),
    "back to float": ("main.py -a resnet20 --bit 32 --dataset digits --init {}/good.pth.tar", "starts from a float one"),
    "--bit 1": ("main.py --bit 1", "bits is 1"),
    "--bit 9": ("snn.py --bit 9", "bits is 9"),
    "--bit x": ("snn_ft.py --bit x", "'x' is no bit-width"),
    "unknown arch": ("main.py --arch lenet", "unknown architecture 'lenet'"),
    "arch of another data set": ("main.py --arch vgg16", "choose one of"),
    "no data": ("main.py -a resnet20 --data {}/empty", "put the official"),
    "truncated data": ("main.py -a resnet20 --data {}/short", "truncated"),
    "-b 0": ("main.py -b 0", "batch size at least 1"),
    "--lr nan": ("main.py --lr nan", "learning rate"),
    "--delay 8": ("snn.py -a resnet20 --bit 3 --delay 8 --dataset digits --init {}/good.pth.tar", "choose 0 to T = 7"),
    "GPU 99": ("main.py -id 99", "GPU index"),
    "unknown flag": ("main.py --bits 3 --nonsense", "--nonsense"),
    "locked directory": ("main.py -a resnet20 --dataset digits --result {}/locked/result", "choose|name another"),
    "file in the way": ("main.py -a resnet20 --dataset digits --result {}/file", "name another --result"),
    "a directory for a file": ("snn.py -a resnet20 --bit 3 --init {}/empty", "is a directory"),
    "weights without activations": ("main.py --bit 32 --weight-bit 4", "quantized weights need quantized activations"),
    "resume something else": ("main.py -a resnet20 --bit 3 --dataset digits --resume {}/good.pth.tar", "no checkpoint of the run"),
    "resume no tuning": ("snn_ft.py -a resnet20 --bit 3 --dataset digits --resume --result {}", "of a fine-tuning run"),
    "start past the end": ("main.py --start-epoch 5 --epochs 5", "nothing is left"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(place, name, tmp_path, monkeypatch, capsys):
    command, expected = MISTAKES[name]
    if name == "locked directory" and os.access(place / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.format(place).split())
    with pytest.raises(SystemExit) as stopped:
        script.run({"main.py": main, "snn.py": snn, "snn_ft.py": snn_ft}[command.split()[0]].main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(error.strip().splitlines()) == 1, error
    assert any(part in error for part in expected.split("|")), error
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_shell(tmp_path):
    command = [sys.executable, str(ROOT / "snn.py"), "--arch", "resnet20", "--bit", "3", "--init", "none.pth.tar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: checkpoint none.pth.tar does not exist: train it first, or correct the path\n"


def test_a_gpu_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(script.UserError, match="-id 2: this machine has 2 GPUs"):
        script.choose_device(2)
    assert script.choose_device(1) == torch.device("cuda", 1)
    assert script.choose_device(None) == torch.device("cuda", 0)


def test_without_a_gpu_one_line_and_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert script.choose_device(None) == script.choose_device(2) == torch.device("cpu")
    assert capsys.readouterr().err == "no GPU here: -id 2 is ignored, the CPU is used\n"


@pytest.mark.parametrize("module", [main, snn, snn_ft])
def test_help_names_every_flag(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(["-h"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("--arch", "--bit", "--cifar-type", "--batch-size", "--device", "--data", "--result", "--deterministic"):
        assert flag in printed


def test_importing_the_scripts_has_no_side_effect(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main, snn, snn_ft"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    assert list(tmp_path.iterdir()) == []
