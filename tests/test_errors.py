"""A user's mistake is one line on stderr that names the value and the remedy, and exit code 2."""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mistakes import MISTAKES

import dali_main
import main
import models
import snn
import snn_ft
from quant import quantize_
from utils import cli, script
from utils.checkpoints.checkpoint import network_state, save_checkpoint
from utils.config import DataSettings, RunSettings
from utils.distributed.processes import Place
from utils.settings import SpikeSettings, TrainSettings, TuneSettings

ROOT = Path(__file__).parent.parent
SCRIPTS = {"main.py": main, "snn.py": snn, "snn_ft.py": snn_ft, "dali_main.py": dali_main}
SETTINGS = (DataSettings, RunSettings, TrainSettings, SpikeSettings, TuneSettings)


NETWORKS = """
from torch import nn

class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def number(num_classes): return 3
def fails(num_classes): return num_classes / 0
def smooth(num_classes): return nn.Sequential(nn.PReLU(), nn.Flatten(), nn.Linear(3072, num_classes))
def seven(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.ReLU(), nn.Linear(5, 7))
def branches(num_classes): return Branches()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a directory with a 3-bit checkpoint, a truncated one, and damaged data."""
    root = tmp_path_factory.mktemp("mistakes")
    network = quantize_(models.build("resnet20", "digits"), 3)
    save_checkpoint(root / "good.pth.tar", network_state(network))
    contents = network_state(network)
    contents["state_dict"] = contents["state_dict"] | {"head.bias": torch.full((10,), torch.nan)}
    save_checkpoint(root / "nan.pth.tar", contents)
    (root / "nets.py").write_text(NETWORKS)
    save_checkpoint(root / "filed.pth.tar", network_state(network) | {"arch": str(root / "nets.py:seven")})
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


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(place, name, tmp_path, monkeypatch, capsys):
    command, expected = MISTAKES[name]
    if name == "locked directory" and os.access(place / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    before = sorted(place.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.format(place).split())
    with pytest.raises(SystemExit) as stopped:
        script.run(SCRIPTS[command.split()[0]].main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert any(part in error for part in expected.split("|")), error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
    assert sorted(place.rglob("*")) == before


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
    with pytest.raises(script.UserError, match="local rank 3: this process sees 2 GPUs of its node"):
        script.choose_device(None, Place(3, 3, 4))


def test_resume_in_front_of_the_directory_of_imagenet_takes_no_file(tmp_path):
    for argv in (["--resume", str(tmp_path)], [str(tmp_path), "--resume"]):
        settings = dali_main.parse(["--bit", "3", *argv])
        assert (settings.run.resume, settings.data.directories) == (Path(), (tmp_path,))
    assert dali_main.parse(["--bit", "3", "--resume", "file", str(tmp_path)]).run.resume == Path("file")


def test_without_a_gpu_one_line_and_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert script.choose_device(None) == script.choose_device(2) == torch.device("cpu")
    assert capsys.readouterr().err == "no GPU here: -id 2 is ignored, the CPU is used\n"


ENVIRONMENTS = {
    "a rank of no kind": ({"RANK": "first"}, "RANK=first"),
    "a rank outside": ({"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK=3"),
    "nobody to meet": ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, no MASTER_ADDR, no MASTER_PORT"),
    "no process at all": ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_that_no_launcher_makes_is_named(name, tmp_path, monkeypatch, capsys):
    variables, expected = ENVIRONMENTS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["main.py", "-a", "resnet20", "--dataset", "digits", "--result", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        script.run(main.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(error.splitlines()) == 1
    assert expected in error
    assert "torchrun" in error


def parser_of(module: ModuleType, monkeypatch) -> argparse.ArgumentParser:
    """Return the parser that a script makes."""
    parsers = []
    monkeypatch.setattr(cli.Parser, "parse_args", lambda parser, argv: parsers.append(parser) or parser.exit(0))
    with pytest.raises(SystemExit):
        module.parse([])
    return parsers[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_the_parser_does(name, monkeypatch):
    """Every flag under all its names, with its choices, its default where it has one; each becomes a setting."""
    parser = parser_of(SCRIPTS[name], monkeypatch)
    printed = " ".join(parser.format_help().split())
    settings = {field.name for kind in SETTINGS for field in fields(kind)}
    assert " ".join(SCRIPTS[name].__doc__.split()) in printed
    for action in parser._actions:
        assert action.help, action.dest
        assert all(flag in printed for flag in action.option_strings)
        if action.choices:
            assert "{" + ",".join(map(str, action.choices)) + "}" in printed
        switches_off = action.const is False  # --no-...: its help says what is left out
        if action.default not in (None, False, argparse.SUPPRESS) and action.option_strings and not switches_off:
            default = re.search(r"default: ([^),; ]+)", action.help)
            kind = type(action.default) if isinstance(action.default, int | float) and action.default is not True else str
            assert kind(default[1]) == kind(action.default), action.dest
        assert action.dest in settings | {"help", "cifar_type", "scratch"}  # these only say what others are


def test_every_name_of_a_flag_means_the_same_in_each_script(monkeypatch):
    meanings = {}
    for module in SCRIPTS.values():
        with monkeypatch.context() as patch:
            for action in parser_of(module, patch)._actions:
                for flag in action.option_strings:
                    assert meanings.setdefault(flag, action.dest) == action.dest


def test_importing_the_scripts_has_no_side_effect(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main, snn, snn_ft"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    assert list(tmp_path.iterdir()) == []
