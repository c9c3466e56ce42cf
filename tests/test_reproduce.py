"""The tables: stages that run once, figures that can be traced, the README's copy."""

import json
from pathlib import Path

import pytest

import main
import reproduce
import snn
from utils import figures, stages
from utils.engine import train_epoch
from utils.errors import UserError
from utils.figures import Figure
from utils.stages import Stage
from utils.tables import conversion

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """Return a 2-bit network, trained on digits for an epoch."""
    root = tmp_path_factory.mktemp("network")
    main.main(["--arch", "resnet20", "--dataset", "digits", "--bit", "2", "--epochs", "1", "--lr", "0.02", "--result", str(root)])
    return root / "resnet20_2bit" / "model_best.pth.tar"


@pytest.fixture
def tuning(network) -> Stage:
    flags = ("--arch", "resnet20", "--dataset", "digits", "--bit", "2", "--init", str(network), "--method", "global", "-n", "2",
             "--calib", "64", "--check-images", "32", "-b", "32", "--lr", "0.01")
    return Stage("tuned", "snn_ft", flags, 0)


def test_a_stage_runs_once_and_its_record_is_traceable(network, tmp_path, monkeypatch):
    flags = ("--arch", "resnet20", "--dataset", "digits", "--bit", "2", "--init", str(network))
    stage = Stage("converted", "snn", flags, 0)
    assert stages.record_of(stage, tmp_path) is None
    record = stages.run(stage, tmp_path)
    assert record["flags"] == list(flags)
    assert record["revision"]
    assert 0 <= record["result"]["snn"]["top1"] <= 100
    monkeypatch.setattr(snn, "main", None)
    assert stages.run(stage, tmp_path) == record


def test_an_interrupted_stage_ends_as_an_unbroken_one(tuning, tmp_path, monkeypatch):
    whole = stages.run(tuning, tmp_path / "whole")["result"]
    calls = []

    def dies_in_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr("utils.tuning.train_epoch", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        stages.run(tuning, tmp_path / "broken")
    assert stages.record_of(tuning, tmp_path / "broken") is None
    monkeypatch.setattr("utils.tuning.train_epoch", train_epoch)
    broken = stages.run(tuning, tmp_path / "broken")["result"]
    assert broken["after"] == whole["after"]
    assert broken["seconds"] > 0


def test_a_record_of_other_flags_is_not_taken_for_this_stage(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / stages.RECORD).write_text(json.dumps({"flags": ["--bit", "2"]}))
    with pytest.raises(UserError, match="is of --bit 2, not --bit 3"):
        stages.run(Stage("a", "snn", ("--bit", "3"), 0), tmp_path)
    (tmp_path / "a" / stages.RECORD).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        stages.run(Stage("a", "snn", ("--bit", "3"), 0), tmp_path)


def test_what_a_stage_starts_from_runs_before_it_and_each_once():
    rows = conversion([0, 1], Path("data"), Path("study"))
    order = list(reproduce.needed(rows))
    assert len({stage.name for stage in order}) == len(order)
    for row in rows:
        for stage in row.stages:
            for before in row.before:
                assert order.index(before) < order.index(stage)
                assert str(Path("study") / before.name) in stage.flags[stage.flags.index("--init") + 1]


def test_the_plan_alone_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "run", None)
    assert reproduce.main(["--study", str(tmp_path), "--result", str(tmp_path), "--rows", "2 bits, signed, converted"]) == []
    assert "1 runs are missing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no row has such a name"):
        reproduce.main(["--study", str(tmp_path), "--rows", "9 bits"])


FIGURES = [Figure(2, "signed", "converted", [86.5], 88.5, 3, [0.0], ["a"], ["r"]),
           Figure(2, "unsigned", "converted", [68.0], 88.5, 3, [0.0], ["b"], ["r"]),
           Figure(2, "signed", "calibrated", [87.0, 88.0], 88.5, 3, [30.0, 60.0], ["c", "d"], ["r"])]


def test_figures_survive_the_file_and_become_a_table(tmp_path):
    path = tmp_path / "table.json"
    figures.write(FIGURES, path)
    assert figures.read(path) == FIGURES
    assert path.with_suffix(".csv").read_text().splitlines()[3] == "2,signed,calibrated,87.500,0.707,88.500,3,45.0"
    lines = figures.markdown(FIGURES).splitlines()
    assert lines[0] == "2 bits, T = 3; quantized ANN 88.50"
    assert lines[-2] == "| converted | 3 | 86.50 | -2.00 |  | 68.00 | -20.50 |  |"
    assert lines[-1] == "| calibrated | 3 | 87.50 ± 0.71 | -1.00 | 0.8 |  | |  |"
    assert len({line.count("|") for line in lines[2:]}) == 1
    figures.draw(FIGURES, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_a_table_goes_between_its_markers():
    text = "a\n<!-- table x -->\nold\n<!-- end of table x -->\nb"
    assert figures.insert(text, "x", "new") == "a\n<!-- table x -->\nnew\n<!-- end of table x -->\nb"
    with pytest.raises(UserError, match="table y"):
        figures.insert(text, "y", "new")

def test_the_readme_shows_the_measured_table():
    readme = (ROOT / "README.md").read_text()
    measured = figures.read(ROOT / "result" / "table_conversion.json")
    assert figures.insert(readme, "conversion", figures.markdown(measured)) == readme
    assert all(figure.stages and figure.revisions for figure in measured)
