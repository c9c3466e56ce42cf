"""Settings: made from flags, written into config.json, taken up again by a run that goes on."""

import json
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest
from helpers import ROOT

import dali_main
import main
import snn
import snn_ft
from utils.checkpoints.checkpoint import LAST, read_checkpoint, recorded, save_checkpoint
from utils.checkpoints.rundir import plain
from utils.errors import UserError

FLAGS = ["-a", "resnet20", "-b", "16"]


@pytest.fixture(scope="module")
def run(tiny) -> Path:
    """Return the directory of a run of one epoch, with settings that are not the defaults."""
    argv = [*FLAGS, "--bit", "2", "--data", str(tiny), "--result", str(tiny), "--lr", "0.02", "--wd", "0.25", "--seed", "3"]
    main.main([*argv, "--epochs", "1", "--lr-schedule", "cosine", "--channels-last", "False"])
    return tiny / "resnet20_2bit"


def resumed(run: Path, where: Path, *argv: str, change=lambda contents: contents) -> tuple[dict, dict]:
    """Go on with a copy of a run; return the values of its checkpoint before and after."""
    path = where / run.name / LAST
    path.parent.mkdir()
    contents = read_checkpoint(run / LAST)
    save_checkpoint(path, change(contents))
    main.main(["-a", "resnet20", "--bit", "2", "--result", str(where), "--resume", *argv])
    return recorded(contents), recorded(read_checkpoint(path))


def test_a_plain_resume_goes_on_with_the_settings_of_the_run(run, tmp_path, capsys):
    before, after = resumed(run, tmp_path)
    here = {"result", "resume", "init"}
    assert {name: after[name] for name in after.keys() - here} == {name: before[name] for name in before.keys() - here}
    assert (after["epochs"], after["lr"], after["wd"], after["seed"], after["channels_last"]) == (1, 0.02, 0.25, 3, False)
    assert "resumed with" not in capsys.readouterr().err
    assert json.loads((tmp_path / run.name / "config.json").read_text())["settings"]["training"]["lr"] == 0.02


def test_what_is_given_and_differs_is_said(run, tmp_path, capsys):
    _, after = resumed(run, tmp_path, "--epochs", "2", "--lr", "0.01", "--seed", "3")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed")]
    assert lines == ["resumed with --epochs 2; it was 1", "resumed with --lr 0.01; it was 0.02"]
    assert (after["epochs"], after["lr"], after["wd"]) == (2, 0.01, 0.25)


@pytest.mark.parametrize("script", [main, dali_main, snn, snn_ft])
def test_a_checkpoint_says_its_architecture_and_bits_where_it_is_evaluated_or_converted(script):
    flags = ["--init", str(ROOT / "result" / "published" / "resnet20_3bit.pth.tar"), *["-e"] * (script is not snn_ft)]
    if script is dali_main:
        with pytest.raises(UserError, match="--arch resnet20: unknown architecture 'resnet20' for imagenet"):
            script.parse([*flags, "/data"])
        return
    run = script.parse(flags).run
    assert (run.arch, run.bit) == ("resnet20", 3)
    assert script.parse([*flags, "--bit", "4"]).run.bit == 4


def test_a_start_of_a_training_says_its_architecture_but_not_the_bits():
    flags = ["--init", str(ROOT / "result" / "published" / "resnet20_3bit.pth.tar")]
    assert [(run.arch, run.bit) for run in (main.parse(flags).run, main.parse([*flags, "--bit", "2"]).run)] == [
        ("resnet20", 32), ("resnet20", 2)]


def test_a_tuning_goes_on_online_though_it_began_with_a_cache():
    before = plain(snn_ft.parse(["--bit", "3"]))
    assert before["cache"] is not None
    assert snn_ft.parse(["--online"], before).tuning.online
    with pytest.raises(UserError, match="--cache 2"):
        snn_ft.parse(["--online", "--cache", "2"], before)


def earlier(contents: dict) -> dict:
    """Return a checkpoint as earlier versions wrote it: with all arguments, some under other names."""
    args = {**contents["args"], "unsigned": False, "limit": None, "cifar_type": 10, "local_rank": None, "timeout": 600,
            "directories": []}
    return contents | {"args": {name: value for name, value in args.items() if name not in ("neuron", "evaluate")}}


def test_a_run_of_an_earlier_version_goes_on(run, tmp_path, capsys):
    before, after = resumed(run, tmp_path, change=earlier)
    assert {name: after[name] for name in ("lr", "wd", "epochs", "seed", "data")} == {
        name: before[name] for name in ("lr", "wd", "epochs", "seed", "data")}
    assert "resumed with" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("lr", "fast"), ("epochs", -1), ("lr_schedule", "linear")])
def test_settings_that_no_run_has_are_refused(run, tmp_path, name, value):
    with pytest.raises(UserError, match=f"{value}"):
        resumed(run, tmp_path, change=lambda contents: contents | {"args": contents["args"] | {name: value}})


def test_settings_do_not_change():
    settings = main.parse([])
    with pytest.raises(FrozenInstanceError):
        settings.training.lr = 1.0


@pytest.mark.parametrize(("script", "argv"), [
    (main, "--arch alex --bit 4 --lr 0.3 --accum 2 -ct 100 --init a.pth.tar --weight-bit 32 --compile --amp"),
    (main, "--dataset cifar10 -t --data elsewhere"),
    (snn_ft, "--bit 3 --method global --teacher -u --delay 1 --start 0 --steps 5"),
    (snn_ft, "--bit 3 --cache 2 --force -n 4 --calib 64 -a vgg11"),
    (snn_ft, "--bit 3 --online --reference one two -j 3"),
    (dali_main, "--bit 3 --loader torchvision --scratch one"),
])
def test_settings_read_again_are_the_same(script, argv):
    """Of a run that goes on, nothing but what belongs to its start is lost on the way through its checkpoint."""
    settings = script.parse(argv.split())
    values = plain(settings)
    again = plain(script.parse(["one", "two"] if script is dali_main else [], values | {"test": False}))
    apart = {"test", "overwrite", "pretrained", "directories", "init"} | ({"epochs"} if settings.run.test else set())
    assert {name: again[name] for name in again.keys() - apart} == {name: values[name] for name in values.keys() - apart}
    assert again["directories"] == (["one", "two"] if settings.data.directories else [])
    assert set(values) == {name for part in asdict(settings).values() if part for name in part}


def test_another_data_set_given_by_its_classes_is_taken():
    before = plain(main.parse([]))
    assert main.parse([], before).data.dataset == "cifar10"
    assert main.parse(["-ct", "100"], before).data.dataset == "cifar100"


def test_a_checkpoint_never_names_a_file_to_run(tmp_path):
    """Only the command line does: what a run was told before comes out of a file that anyone may have made."""
    before = plain(snn_ft.parse(["--bit", "3"])) | {"arch": f"{tmp_path}/evil.py:network", "neuron": f"{tmp_path}/evil.py:fire"}
    settings = snn_ft.parse(["--bit", "3"], before)
    assert (settings.run.arch, settings.spiking.neuron) == ("alex", "signed")
