"""The rows of the tables: their names, the stages that they take and share."""

from dataclasses import replace
from pathlib import Path

import pytest

import main
import reproduce
from utils.errors import UserError
from utils.study import plan, results
from utils.study.networks import Networks
from utils.study.plan import Plan, Speed
from utils.study.stages import TRAININGS
from utils.study.tables import FLOAT_FILE, FROM_FLOAT, TABLES, rows_of

FIRST_OF_5 = ("torchvision:resnet18", "torchvision:resnet34")


@pytest.mark.parametrize("table", TABLES)
def test_what_a_stage_starts_from_runs_before_it_and_each_once(table, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    rows = rows_of(table, [0, 1], Path("data"), tmp_path, 0.1)
    order = Plan(rows, tmp_path).missing
    assert len({stage.name for stage in order}) == len(order)
    made = {str(tmp_path / stage.name): number for number, stage in enumerate(order)}
    for number, stage in enumerate(order):
        first = "32" if stage.script == "main" and table != FROM_FLOAT else "5" if stage.arch in FIRST_OF_5 else "4"
        of_others = stage.init == (FLOAT_FILE if table == FROM_FLOAT else None)
        assert of_others == (stage.script in TRAININGS and stage.flag("--bit") == first)
        assert of_others or made[str(stage.init.parent.parent)] < number


def test_each_row_has_a_name_of_its_own():
    for table in TABLES:
        names = [row.name for row in rows_of(table, [0], Path("data"), Path("study"))]
        assert len(set(names)) == len(names)
        assert not any("32 bits" in name for name in names)  # "2 bits" would find it


def test_a_whole_name_chooses_its_row_and_a_part_of_one_all_that_hold_it():
    rows = {"conversion": rows_of("conversion", [0], Path("data"), Path("study"), files=Path("nets"))}

    def methods(*texts: str) -> list[str]:
        return [row.method for row in reproduce.choose(rows, list(texts))["conversion"]]

    assert methods("resnet20, 2 bits, unsigned, calibrated") == ["calibrated"]
    assert methods("2 bits, unsigned, calibrated") == ["calibrated", "calibrated, global", "calibrated, through time"]
    assert methods("resnet20, 2 bits, unsigned, calibrated", "2 bits, unsigned, con") == ["converted", "calibrated"]
    with pytest.raises(UserError, match="no row of conversion"):
        methods("5 bits")


def test_tables_share_their_stages():
    def names(table: str) -> set[str]:
        rows = rows_of(table, [0], Path("data"), Path("study"))
        return {stage.name for row in rows for chain in row.chains for stage in chain}

    shared = names("cifar10") & names("conversion")
    assert "resnet20-300epochs/2bit-seed0" in shared
    assert "resnet20-300epochs/2bit-signed-converted-seed0" in shared


def test_early_readouts_are_told_by_the_run_of_all_steps():
    rows = {row.method: row for row in rows_of("latency", [0], Path("data"), Path("study"), files=Path("nets"))
            if (row.bit, row.neuron) == (2, "signed")}
    assert list(rows) == ["1 of 3 steps", "2 of 3 steps", "converted", "delay 1", "delay 2", "delay 3"]
    result = {"ann": {"top1": 90.0}, "snn": {"top1": 80.0}, "readout": [20.0, 50.0, 80.0], "latency": 3, "seconds": 0.0}
    found = [results.measured(row, [[{"result": result, "revision": "r"}]]) for row in list(rows.values())[:3]]
    assert [(result.accuracies, result.latency, result.stages) for result in found] == [
        ([accuracy], steps, ["resnet20-nets/2bit-signed-converted-seed0"]) for steps, accuracy in enumerate(result["readout"], 1)]


def test_nothing_is_run_twice_for_a_flag_or_a_seed_that_does_not_change_it():
    networks = Networks("resnet20", Path("data"), Path("study"), extra=("--compile",))
    assert [stage.name for stage in networks.chain(4, 0)] == ["resnet20-300epochs/32bit-seed0",
                                                              "resnet20-300epochs-compile/4bit-seed0"]
    rows = rows_of("conversion", [1, 2], Path("data"), Path("study"), files=Path("nets"))
    assert [stage.name for stage in rows[-4].stages] == ["resnet20-nets/2bit-unsigned-converted-seed0"]
    assert {row.method: len(row.chains) for row in rows if row.bit == 2} == {
        "converted": 1, "calibrated": 2, "delay 1": 1, "delay 2": 1, "delay 3": 1, "calibrated, 2 of 3 steps": 2,
        "calibrated, global": 2, "calibrated, through time": 2, "calibrated, global, 2 of 3 steps": 2,
        "layer-wise": 2, "global": 2, "layer-wise, global": 2}
    assert {row.method: row.tuning for row in rows if row.bit == 2} == {
        "converted": "", "calibrated": "512", "delay 1": "", "delay 2": "", "delay 3": "", "calibrated, 2 of 3 steps": "512",
        "calibrated, global": "512 + 40,000", "calibrated, through time": "512 + 10 x 50,000",
        "calibrated, global, 2 of 3 steps": "512 + 40,000", "global": "40,000",
        "layer-wise": "5,000 of 50,000, 1 of 8 epochs", "layer-wise, global": "5,000 of 50,000, 1 of 8 epochs + 40,000"}
    fast = rows_of("conversion", [0], Path("data"), Path("study"), extra=("--amp", "--compile"), files=Path("nets"))
    assert [stage.name for row in fast for stage in row.stages if "--amp" in stage.flags] == [
        f"resnet20-nets/{bit}bit-{neuron}-calibrated-time-amp-compile-seed0" for bit in (3, 2) for neuron in ("signed", "unsigned")]
    imagenet = [row for row in rows_of("imagenet", [0], Path("data"), Path("study")) if row.method == "layer-wise"]
    assert {row.tuning for row in imagenet} == {"5,000 of 1,281,167"}


def test_the_fast_tables_train_as_main_does_with_its_recipe():
    for table, bits in (("fast", [32, 4, 3, 2]), (FROM_FLOAT, [4, 3, 2])):
        rows = [row for row in rows_of(table, [0], Path("data"), Path("study")) if row.neuron == "ANN"]
        assert [row.bit for row in rows] == bits
        for row in rows:
            told = main.parse(["--bit", str(row.bit), "--recipe", "fast"]).training
            found = main.parse(list(row.stages[0].flags)).training
            assert row.stages[0].teacher == (row.networks.path(32, 0) if row.bit in (4, 3) else None)
            assert replace(found, recipe="fast") == told
            assert row.networks.trained_for(row.bit) == f"{told.epochs} of 300, fast"
    assert rows[0].stages[0].name == "resnet20-fast-from-resnet20_float/4bit-seed0"


def test_the_parts_of_a_recipe_differ_in_their_flags_alone():
    rows = [row for row in rows_of("recipe", [0, 1], Path("data"), Path("study"), 0.5) if row.bit == 2]
    last = {row.method: row.stages for row in rows}
    assert {stage.init for stages in last.values() for stage in stages} == {
        Path("study/resnet20-150epochs/3bit-seed0/resnet20_3bit/model_best.pth.tar")}
    plain = last.pop("published")[0].flags
    assert plain[plain.index("--epochs") + 1] == "15"
    added = {name: stages[0].flags[len(plain):] for name, stages in last.items() if stages[0].flags[:len(plain)] == plain}
    whole = added.pop("all")
    assert sorted(whole) == sorted(flag for flags in added.values() for flag in flags)
    assert set(added) == {"nesterov", "ema", "warmup", "rates", "teacher"}
    assert {name for name, stages in last.items() if stages[0].teacher} == {"teacher", "all"}
