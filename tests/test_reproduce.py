"""The tables: stages that run once, figures that can be traced, the README's copy."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
import reproduce
import snn
from utils import figures, pictures, plan, stages
from utils.engine import train_epoch
from utils.errors import UserError
from utils.figures import Figure
from utils.plan import Plan, Speed
from utils.stages import Stage
from utils.tables import TABLES, rows_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network(tiny) -> Path:
    """Return a 2-bit network, trained on noise for an epoch."""
    main.main(["--arch", "resnet20", "--data", str(tiny), "--bit", "2", "--epochs", "1", "--lr", "0.02", "--result", str(tiny)])
    return tiny / "resnet20_2bit" / "model_best.pth.tar"


def flags_of(network: Path, *more: str) -> tuple[str, ...]:
    """Return the flags of a stage that starts from the network."""
    return ("--arch", "resnet20", "--data", str(network.parent.parent), "--bit", "2", "--init", str(network), *more)


@pytest.fixture
def tuning(network) -> Stage:
    return Stage("tuned", "snn_ft", flags_of(network, "--method", "global", "-n", "2", "--lr", "0.01"))


def test_a_stage_runs_once_and_its_record_is_traceable(network, tmp_path, monkeypatch):
    flags = flags_of(network)
    stage = Stage("converted", "snn", flags)
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
    (tmp_path / "a" / stages.RECORD).write_text(json.dumps({"flags": ["--bit", "2"], "start": None}))
    with pytest.raises(UserError, match="is of --bit 2, not --bit 3"):
        stages.run(Stage("a", "snn", ("--bit", "3")), tmp_path)
    (tmp_path / "a" / stages.RECORD).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        stages.run(Stage("a", "snn", ("--bit", "3")), tmp_path)


@pytest.mark.parametrize("table", TABLES)
def test_what_a_stage_starts_from_runs_before_it_and_each_once(table, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    rows = rows_of(table, [0, 1], Path("data"), tmp_path, 0.1)
    order = Plan(rows, tmp_path).missing
    assert len({stage.name for stage in order}) == len(order)
    made = {str(tmp_path / stage.name): number for number, stage in enumerate(order)}
    for number, stage in enumerate(order):
        start = stage.flag("--init")
        first = (stage.script, stage.flag("--bit")) in (("main", "32"), ("dali_main", "4"))
        assert (start is None) == first
        assert start is None or made[str(Path(start).parent.parent)] < number


def test_each_row_has_a_name_of_its_own():
    for table in TABLES:
        names = [row.name for row in rows_of(table, [0], Path("data"), Path("study"))]
        assert len(set(names)) == len(names)
        assert not any("32 bits" in name for name in names)  # "2 bits" would find it


def test_tables_share_their_stages():
    def names(table: str) -> set[str]:
        rows = rows_of(table, [0], Path("data"), Path("study"))
        return {stage.name for row in rows for chain in row.chains for stage in chain}

    shared = names("cifar10") & names("conversion")
    assert "resnet20-300epochs/2bit-seed0" in shared
    assert "resnet20-300epochs/2bit-signed-converted-seed0" in shared


def test_the_plan_alone_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "run", None)
    places = ["--study", str(tmp_path), "--result", str(tmp_path)]
    assert reproduce.main([*places, "--list", "--table", "conversion", "--rows", "2 bits, signed, converted"]) == {"conversion": []}
    assert "1 runs are missing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no row of cifar10 has such a name"):
        reproduce.main([*places, "--table", "cifar10", "--rows", "9 bits"])
    with pytest.raises(UserError, match="measures trainings"):
        reproduce.main([*places, "--table", "cifar10", "--networks", "x"])


def figure(neuron: str, method: str, accuracies: list[float], seconds: list[float], **changes) -> Figure:
    entry = {"dataset": "cifar10", "arch": "resnet20", "bit": 2, "neuron": neuron, "method": method, "accuracies": accuracies,
             "last": [], "anns": [88.5] * len(accuracies), "latency": 3, "seconds": seconds, "epochs": "45 of 300",
             "published": None, "source": None, "stages": ["a"], "revisions": ["r"]}
    return Figure(**(entry | changes))


TRAINED = figure("ANN", "trained", [88.5], [6000.0], last=[88.25], anns=[], latency=None, published=90.96, source="APoT")
FIGURES = [TRAINED, figure("signed", "converted", [86.5], [0.0]), figure("signed", "calibrated", [87.0, 88.0], [30.0, 60.0])]


def test_figures_survive_the_file_and_become_a_table(tmp_path):
    path = tmp_path / "table.json"
    figures.write(FIGURES, path)
    assert figures.read(path) == FIGURES
    last = path.with_suffix(".csv").read_text().splitlines()[3]
    assert last == "resnet20,2,signed,calibrated,87.500,0.707,88.500,3,0.8,45 of 300,,"
    title, _, head, _, *lines, _, notes = figures.markdown(FIGURES).splitlines()
    assert title == "resnet20, 2 bits, T = 3; quantized ANN 88.50"
    assert lines[0] == "| ANN | trained | 88.50 (last epoch 88.25) |  | 90.96 | 45 of 300 |  | 100.0 |"
    assert lines[1] == "| signed | converted | 86.50 | -2.00 | none published | 45 of 300 | 3 |  |"
    assert lines[2] == "| signed | calibrated | 87.50 ± 0.71 | -1.00 | none published | 45 of 300 | 3 | 0.8 |"
    assert {line.count("|") for line in lines} == {head.count("|")}
    assert notes == "Published: 90.96: APoT"
    bare = figures.markdown([figure("signed", "converted", [86.5], [0.0], epochs="see nets")]).splitlines()
    assert bare[2:] == ["| neuron |  | accuracy, % | to the ANN | latency, steps |", "|---|---|---|---|---|",
                        "| signed | converted | 86.50 | -2.00 | 3 |", "", "Published: none of these figures."]
    pictures.draw("cifar10", FIGURES, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000
    path.write_text('[{"bit": 2}]')
    with pytest.raises(UserError, match="no table of this version"):
        figures.read(path)


def test_new_figures_take_the_place_of_those_of_their_row_and_leave_others():
    better = figure("signed", "converted", [87.5], [0.0], epochs="300")
    order = [figure.key for figure in FIGURES]
    assert figures.merged(FIGURES, [better], order) == [TRAINED, better, FIGURES[2]]
    assert figures.merged([], [FIGURES[2], TRAINED], order) == [TRAINED, FIGURES[2]]


def test_a_table_goes_between_its_markers():
    text = "a\n<!-- table x -->\nold\n<!-- end of table x -->\nb"
    assert figures.insert(text, "x", "new") == "a\n<!-- table x -->\nnew\n<!-- end of table x -->\nb"
    with pytest.raises(UserError, match="table y"):
        figures.insert(text, "y", "new")


@pytest.mark.parametrize("path", sorted((ROOT / "result").glob("table_*.json")), ids=lambda path: path.stem)
def test_the_readme_shows_the_measured_table(path):
    readme, measured = (ROOT / "README.md").read_text(), figures.read(path)
    assert figures.insert(readme, path.stem.removeprefix("table_"), figures.markdown(measured)) == readme
    assert all(figure.stages and figure.revisions for figure in measured)


def test_a_record_of_another_start_is_not_taken_for_this_stage(network, tmp_path):
    start = tmp_path / "start.pth.tar"
    start.write_bytes(network.read_bytes())
    data = str(network.parent.parent)
    stage = Stage("converted", "snn", ("--arch", "resnet20", "--data", data, "--bit", "2", "--init", str(start)))
    record = stages.run(stage, tmp_path)
    start.unlink()  # a record outlives what it was made from
    assert stages.record_of(stage, tmp_path) == record
    start.write_bytes(b"another")
    with pytest.raises(UserError, match="started from another"):
        stages.record_of(stage, tmp_path)


def test_an_interrupted_training_goes_on_without_its_start(network, tmp_path, monkeypatch):
    stage = Stage("trained", "main", flags_of(network, "--epochs", "2", "--lr", "0.02"))
    saved, simple = main.training.best_of, stages.simple

    def dies(history):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.training, "best_of", dies)  # before the first epoch is saved
    with pytest.raises(KeyboardInterrupt):
        stages.run(stage, tmp_path)
    monkeypatch.setattr(main.training, "best_of", saved)
    assert stages.arguments(stage, tmp_path / "trained")[-1] == "--resume"
    assert "--init" not in stages.arguments(stage, tmp_path / "trained")
    assert stages.left(stage, tmp_path) == 1
    monkeypatch.setattr(stages, "simple", dies)  # all epochs are done, but there is no record
    with pytest.raises(KeyboardInterrupt):
        stages.run(stage, tmp_path)
    assert stages.left(stage, tmp_path) == 0
    assert stages.record_of(stage, tmp_path) is None
    monkeypatch.setattr(stages, "simple", simple)
    assert stages.run(stage, tmp_path)["result"]["last"]["epoch"] == 1


def command(data: Path, where: Path, rows: list[str], epochs: int = 2) -> list[str]:
    """Return the arguments of a run of reproduce.py on a few images."""
    return ["--table", "cifar10", "--epochs-scale", str(epochs / 300), "--rows", *rows, "--data", str(data),
            "--study", str(where / "study"), "--result", str(where / "result")]


def digits(where: Path) -> list[dict]:
    """Return a table without times, revisions and directories."""
    entries = json.loads((where / "result" / "table_cifar10.json").read_text())
    return [{key: value for key, value in entry.items() if key not in ("seconds", "revisions")} for entry in entries]


def test_a_killed_table_goes_on_to_the_same_figures(tiny, tmp_path):
    """Kills when a file is renamed: within a training, and between its last epoch and its record."""
    rows = ["resnet20, float, ANN"]

    def job(where: str, moment: tuple | None) -> dict:
        argv = command(tiny, tmp_path / where, rows)
        return {"script": "reproduce", "argv": argv, "resume": argv, "checkpoint": "", "moment": moment,
                "log": str(tmp_path / f"{where}.log")}

    jobs = [job("whole", None), job("broken", ("rename", 5)), job("broken", ("rename", 8)), job("broken", None)]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "killed.py"), str(tmp_path / "jobs.json")], capture_output=True,
                          text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    whole, *kills, last = json.loads(done.stdout)
    assert (whole, last) == (0, 0), (tmp_path / "broken.log").read_text()
    assert all(code < 0 for code in kills)
    assert len(digits(tmp_path / "whole")) == 1
    assert (tmp_path / "broken.log").read_text().count("epoch 2/2") == 1  # the last run wrote the record alone
    assert digits(tmp_path / "broken") == digits(tmp_path / "whole")


@pytest.mark.slow
def test_a_table_survives_three_kills_at_random_moments(tiny, tmp_path):
    """SIGKILL by the clock to the whole way of a network: training at two bit-widths, conversion, both kinds of tuning, a delay."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(where: str) -> subprocess.Popen:
        argv = command(tiny, tmp_path / where, ["resnet20, float", "resnet20, 4 bits"])
        return subprocess.Popen([sys.executable, str(ROOT / "reproduce.py"), *argv], env=environment, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start("whole").wait() == 0
    length = time.monotonic() - began
    draw = random.Random(time.time_ns())
    for _ in range(3):
        run = start("broken")
        time.sleep(draw.uniform(0.1, 0.3) * length)  # three of them are less than the whole
        run.kill()
        assert run.wait() != 0, "it was through before it was killed"
    assert start("broken").wait() == 0
    assert digits(tmp_path / "broken") == digits(tmp_path / "whole")
