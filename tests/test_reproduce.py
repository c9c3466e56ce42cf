"""reproduce.py: the plan, what it refuses, and a table that is killed and goes on."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, timeless

import reproduce
from utils.errors import UserError
from utils.study import plan, stages, table_file
from utils.study.plan import Plan, Speed
from utils.study.tables import TABLES, rows_of


def test_the_plan_alone_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "run", None)
    places = ["--study", str(tmp_path), "--result", str(tmp_path)]
    argv = [*places, "--list", "--table", "conversion", "--networks", "nets", "--rows", "2 bits, signed, converted"]
    assert reproduce.main(argv) == {"conversion": []}
    assert "1 runs are missing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--rows '9 bits': no row of cifar10 has such a name"):
        reproduce.main([*places, "--table", "cifar10", "--rows", "2 bits", "9 bits"])
    with pytest.raises(UserError, match="nothing is trained"):
        reproduce.main([*argv, "--epochs-scale", "0.1"])
    with pytest.raises(UserError, match="nothing is trained; the table latency does not tune through time"):
        reproduce.main([*places, "--table", "latency", "--networks", "nets", "--amp"])
    with pytest.raises(UserError, match="--seeds 1 0 1: a seed counts once"):
        reproduce.main([*places, "--seeds", "1", "0", "1"])
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    assert reproduce.main([*places, "--rows", "vgg16", "vgg11"]) == {"cifar10": [], "imagenet": []}
    capsys.readouterr()
    assert reproduce.main(places) == {table: [] for table in TABLES}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-3]] == list(TABLES)
    assert all("rows, 0 have a result" in line for line in lines[:-3])
    with pytest.raises(UserError, match="a plan makes no table"):
        reproduce.main([*places, "--readme", str(ROOT / "result" / "tables.md")])
    (tmp_path / "page.md").write_text("no markers")
    with pytest.raises(UserError, match="put both lines into the file"):
        reproduce.main([*places, "--table", "conversion", "--readme", str(tmp_path / "page.md")])
    with pytest.raises(UserError, match="measures trainings"):
        reproduce.main([*places, "--table", "cifar10", "--networks", "x"])
    with pytest.raises(UserError, match=r"is a file; name the directory of the files \{arch\}_\{bit\}bit"):
        reproduce.main([*places, "--table", "conversion", "--networks", str(tmp_path / "page.md")])
    for table, flag in (("conversion", "--networks"), ("fast-from-float", "--float")):
        with pytest.raises(UserError, match=f"nowhere.* does not exist: {flag} .* names another place"):
            reproduce.main([*places, "--table", table, flag, "nowhere", "--rows", "2 bits, signed, converted"])
    with pytest.raises(UserError, match="--float x: the table fast trains its float network"):
        reproduce.main([*places, "--table", "fast", "--float", "x"])
    with pytest.raises(UserError, match="the fast recipe has epochs of its own"):
        reproduce.main([*places, "--table", "fast", "--epochs-scale", "0.5"])


def test_figures_without_their_network_are_told_from_the_plan_on(tmp_path, monkeypatch, capsys):
    """A study of which the records were passed on, but not every network, as in git."""
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    monkeypatch.setattr(stages, "run", None)
    rows = [row for row in rows_of("cifar10", [0], Path("data"), tmp_path) if row.name.startswith("resnet20, ")]
    row = next(row for row in rows if row.name.endswith("4 bits, signed, converted"))
    first, second, conversion = row.chains[0]
    for stage in (first, second):
        (tmp_path / stage.name).mkdir(parents=True)
        result = {"best": {"test_top1": 90.0}, "last": {"test_top1": 89.0}}
        record = {"flags": list(stage.flags), "start": None, "revision": "r", "result": result, "seconds": 1.0}
        (tmp_path / stage.name / stages.RECORD).write_text(json.dumps(record))
    assert Plan([row], tmp_path).lost == {row.name: [second, first]}
    argv = ["--table", "cifar10", "--rows", row.name, "--study", str(tmp_path), "--result", str(tmp_path)]
    assert reproduce.main([*argv, "--list"]) == {"cifar10": []}
    assert f"put them into {tmp_path / second.name}, {tmp_path / first.name}, or" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 rows need networks of which only the results are here"):
        reproduce.main(argv)
    # What can be measured is measured before this error.
    with pytest.raises(UserError, match="1 rows need networks"):
        reproduce.main([*argv, "--rows", row.name, "resnet20, 4 bits, ANN"])
    assert [result.method for result in table_file.read(tmp_path / "table_cifar10.json")] == ["trained"]
    conversion.init.parent.mkdir()
    conversion.init.write_bytes(b"network")
    assert Plan([row], tmp_path).lost == {}


def test_a_teacher_that_is_gone_is_told_from_the_plan_on(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    row = next(row for row in rows_of("fast", [0], Path("data"), tmp_path) if row.name == "resnet20, 3 bits, ANN, trained")
    trained, first, second = row.chains[0]
    digest = hashlib.sha256(b"network").hexdigest()[:16]
    for stage in (trained, first):
        (tmp_path / stage.name).mkdir(parents=True)
        start, teacher = (None if file is None else digest for file in (stage.init, stage.teacher))
        record = {"flags": list(stage.flags), "start": start, "teacher": teacher, "revision": "r", "result": {}}
        (tmp_path / stage.name / stages.RECORD).write_text(json.dumps(record))
    second.init.parent.mkdir()
    second.init.write_bytes(b"network")
    assert Plan([row], tmp_path).lost == {row.name: [trained]}
    second.teacher.parent.mkdir()
    second.teacher.write_bytes(b"network")
    assert Plan([row], tmp_path).lost == {}


def command(data: Path, where: Path, rows: list[str], epochs: int = 2) -> list[str]:
    """Return the arguments of a run of reproduce.py on a few images."""
    return ["--table", "cifar10", "--epochs-scale", str(epochs / 300), "--rows", *rows, "--data", str(data),
            "--study", str(where / "study"), "--result", str(where / "result")]


def digits(where: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """Return a table and the logs of its runs, with the loss of each epoch, without times and revisions."""
    entries = json.loads((where / "result" / "table_cifar10.json").read_text())
    logs = {str(log.relative_to(where)): timeless([json.loads(line) for line in log.read_text().splitlines()])
            for log in sorted(where.glob("study/**/log.jsonl"))}
    return timeless(entries), logs


def test_a_killed_table_goes_on_to_the_same_figures(tiny, forks, tmp_path):
    """Kills when a file is renamed: within a training, and between its last epoch and its record."""
    rows = ["resnet20, float, ANN"]

    def attempt(where: str, moment: tuple | None = None) -> int:
        return forks.run("reproduce", command(tiny, tmp_path / where, rows), tmp_path / f"{where}.log", moment)

    assert attempt("whole") == 0, (tmp_path / "whole.log").read_text()
    assert attempt("broken", ("rename", 6)) < 0
    assert attempt("broken", ("rename", 9)) < 0
    assert attempt("broken") == 0, (tmp_path / "broken.log").read_text()
    entries, logs = digits(tmp_path / "whole")
    assert len(entries) == len(logs) == 1
    assert (tmp_path / "broken.log").read_text().count("epoch 2/2") == 1  # the last run wrote the record alone
    assert digits(tmp_path / "broken") == digits(tmp_path / "whole")


@pytest.mark.slow
def test_a_table_survives_three_kills_at_random_moments(tiny, tmp_path):
    """SIGKILL by the clock on the whole way of a network: training at two bit-widths, conversion, both kinds of tuning, a delay."""
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
