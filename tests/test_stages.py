"""Stages of a study: each runs once, goes on after an interruption, and its record can be traced."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import TINY, TINY_RUN

import main
import snn
from utils.errors import UserError
from utils.study import stages
from utils.study.stages import Stage
from utils.training.engine import train_epoch


@pytest.fixture(scope="module")
def network(tiny) -> Path:
    """Return a 2-bit network, trained on noise for an epoch."""
    main.main(["--arch", TINY, "--data", str(tiny), "--bit", "2", "--epochs", "1", "--lr", "0.02", "--result", str(tiny)])
    return tiny / f"{TINY_RUN}_2bit" / "model_best.pth.tar"


def stage_of(script: str, network: Path, *flags: str, data: Path | None = None) -> Stage:
    """Return a stage that starts from the network, whose directory is in that of the images."""
    data = data or network.parent.parent
    return Stage("stage", script, ("--arch", TINY, "--bit", "2", *flags), network, ("--data", str(data)))


@pytest.fixture
def tuning(network) -> Stage:
    return stage_of("snn_ft", network, "--method", "global", "-n", "2", "--lr", "0.01")


def test_a_stage_runs_once_and_its_record_is_traceable(network, tmp_path, monkeypatch):
    stage = stage_of("snn", network)
    assert stages.record_of(stage, tmp_path) is None
    record = stages.run(stage, tmp_path)
    assert record["flags"] == ["--arch", TINY, "--bit", "2"]
    assert record["revision"]
    assert record["result"] == stages.simple(snn.main([*stage.flags, "--init", str(network), *stage.place]))
    monkeypatch.setattr(snn, "main", None)
    assert stages.run(stage, tmp_path) == record
    assert stages.run(replace(stage, place=("--data", "elsewhere")), tmp_path) == record


def test_an_interrupted_stage_ends_as_an_unbroken_one(tuning, tmp_path, monkeypatch):
    whole = stages.run(tuning, tmp_path / "whole")["result"]
    calls = []

    def dies_in_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr("utils.training.tune.train_epoch", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        stages.run(tuning, tmp_path / "broken")
    assert stages.record_of(tuning, tmp_path / "broken") is None
    monkeypatch.setattr("utils.training.tune.train_epoch", train_epoch)
    broken = stages.run(tuning, tmp_path / "broken")["result"]
    assert broken["after"] == whole["after"]
    assert broken["seconds"] > 0


def test_a_record_of_other_flags_is_not_taken_for_this_stage(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / stages.RECORD).write_text(json.dumps({"flags": ["--bit", "2"], "start": None, "result": {}}))
    with pytest.raises(UserError, match="is of --bit 2, not --bit 3"):
        stages.run(Stage("a", "snn", ("--bit", "3")), tmp_path)
    (tmp_path / "a" / stages.RECORD).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        stages.run(Stage("a", "snn", ("--bit", "3")), tmp_path)


def test_a_stage_is_run_by_one_process_at_a_time(tmp_path):
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / stages.LOCK), pytest.raises(UserError, match="stage a: another process runs it"):
        stages.run(Stage("a", "snn", ()), tmp_path)


def test_a_record_of_another_start_is_not_taken_for_this_stage(network, tmp_path):
    start = tmp_path / "start.pth.tar"
    start.write_bytes(network.read_bytes())
    stage = stage_of("snn", start, data=network.parent.parent)
    record = stages.run(stage, tmp_path)
    start.unlink()  # a record outlives what it was made from
    assert stages.record_of(stage, tmp_path) == record
    start.write_bytes(b"another")
    with pytest.raises(UserError, match="started from another"):
        stages.record_of(stage, tmp_path)


def test_a_teacher_is_known_by_its_contents_not_its_path(network, tmp_path):
    teacher, moved = tmp_path / "teacher.pth.tar", tmp_path / "moved.pth.tar"
    main.main(["--arch", TINY, "--data", str(network.parent.parent), "--epochs", "1", "--result", str(tmp_path)])
    teacher.write_bytes((tmp_path / f"{TINY_RUN}_32bit" / "model_best.pth.tar").read_bytes())
    moved.write_bytes(teacher.read_bytes())
    stage = replace(stage_of("main", network, "--epochs", "1", "--lr", "0.02"), teacher=teacher)
    record = stages.run(stage, tmp_path)
    assert record["teacher"] == stages.digest(teacher)
    config = json.loads((tmp_path / "stage" / f"{TINY_RUN}_2bit" / "config.json").read_text())
    assert config["settings"]["training"]["teacher"] == str(teacher)
    assert stages.run(replace(stage, teacher=moved), tmp_path) == record
    with pytest.raises(UserError, match="started from another"):
        stages.record_of(replace(stage, teacher=network), tmp_path)
    path = tmp_path / "stage" / stages.RECORD  # earlier versions had the path among the flags, and no digest
    old = {**record, "flags": [*record["flags"], "--teacher", "elsewhere"]}
    del old["teacher"]
    path.write_text(json.dumps(old))
    assert stages.run(stage, tmp_path) == old
    for found in (record, old):
        path.write_text(json.dumps(found))
        with pytest.raises(UserError, match="--teacher, not"):
            stages.record_of(replace(stage, teacher=None), tmp_path)
    path.write_text(json.dumps(record | {"teacher": None}))
    with pytest.raises(UserError, match="--teacher: delete"):
        stages.record_of(stage, tmp_path)


def test_an_interrupted_training_goes_on_without_its_start(network, tmp_path, monkeypatch):
    stage = stage_of("main", network, "--epochs", "2", "-b", "2", "--lr", "0.02")
    saved, simple = main.train.best_of, stages.simple

    def dies(history):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.train, "best_of", dies)  # before the first epoch is saved
    with pytest.raises(KeyboardInterrupt):
        stages.run(stage, tmp_path)
    monkeypatch.setattr(main.train, "best_of", saved)
    assert stages.arguments(stage, tmp_path / "stage")[-1] == "--resume"
    assert "--init" not in stages.arguments(stage, tmp_path / "stage")
    with pytest.raises(UserError, match=r"is of .*--lr 0.02, not .*--lr 0.5"):
        stages.run(stage_of("main", network, "--epochs", "2", "-b", "2", "--lr", "0.5"), tmp_path)
    assert stages.left(stage, tmp_path) == 1
    monkeypatch.setattr(stages, "simple", dies)  # all epochs are done, but there is no record
    with pytest.raises(KeyboardInterrupt):
        stages.run(stage, tmp_path)
    assert stages.left(stage, tmp_path) == 0
    assert stages.record_of(stage, tmp_path) is None
    monkeypatch.setattr(stages, "simple", simple)
    monkeypatch.setattr(stages, "revision", lambda: "later")
    record = stages.run(stage, tmp_path)
    assert record["revision"].endswith(", later")
    assert record["result"]["last"]["epoch"] == 1
    log = (tmp_path / "stage" / f"{TINY_RUN}_2bit" / "log.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in log)
    assert record["seconds"] == pytest.approx(seconds, abs=0.06)  # though the last run had no epoch
    assert seconds > 0
    (tmp_path / "stage" / stages.RECORD).unlink()
    with pytest.raises(UserError, match=r"holds a run without record\.json"):
        stages.run(stage, tmp_path)


def test_a_stage_that_ended_before_it_began_runs_when_its_start_is_there(network, tmp_path):
    start = tmp_path / "start.pth.tar"
    stage = stage_of("snn", start, data=network.parent.parent)
    with pytest.raises(UserError, match="does not exist"):
        stages.run(stage, tmp_path)
    start.write_bytes(network.read_bytes())
    assert stages.record_of(stage, tmp_path) is None
    assert stages.run(stage, tmp_path)["start"] == stages.digest(stage.init)
