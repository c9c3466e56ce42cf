"""The tables: stages that run once, figures that can be traced, the README's copy."""

import json
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

import main
import reproduce
import snn
from utils.errors import UserError
from utils.study import figures, markdown, pictures, plan, stages, table_file
from utils.study.figures import Figure
from utils.study.networks import Networks
from utils.study.plan import Plan, Speed
from utils.study.stages import Stage
from utils.study.tables import TABLES, rows_of
from utils.training.engine import train_epoch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network(tiny) -> Path:
    """Return a 2-bit network, trained on noise for an epoch."""
    main.main(["--arch", "resnet20", "--data", str(tiny), "--bit", "2", "--epochs", "1", "--lr", "0.02", "--result", str(tiny)])
    return tiny / "resnet20_2bit" / "model_best.pth.tar"


def stage_of(script: str, network: Path, *flags: str, data: Path | None = None) -> Stage:
    """Return a stage that starts from the network, whose directory is in that of the images."""
    data = data or network.parent.parent
    return Stage("stage", script, ("--arch", "resnet20", "--bit", "2", *flags), network, ("--data", str(data)))


@pytest.fixture
def tuning(network) -> Stage:
    return stage_of("snn_ft", network, "--method", "global", "-n", "2", "--lr", "0.01")


def test_a_stage_runs_once_and_its_record_is_traceable(network, tmp_path, monkeypatch):
    stage = stage_of("snn", network)
    assert stages.record_of(stage, tmp_path) is None
    record = stages.run(stage, tmp_path)
    assert record["flags"] == ["--arch", "resnet20", "--bit", "2"]
    assert record["revision"]
    assert 0 <= record["result"]["snn"]["top1"] <= 100
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


@pytest.mark.parametrize("table", TABLES)
def test_what_a_stage_starts_from_runs_before_it_and_each_once(table, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    rows = rows_of(table, [0, 1], Path("data"), tmp_path, 0.1)
    order = Plan(rows, tmp_path).missing
    assert len({stage.name for stage in order}) == len(order)
    made = {str(tmp_path / stage.name): number for number, stage in enumerate(order)}
    for number, stage in enumerate(order):
        first = (stage.script, stage.flag("--bit")) in (("main", "32"), ("dali_main", "4"))
        assert (stage.init is None) == first
        assert stage.init is None or made[str(stage.init.parent.parent)] < number


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
    assert methods("2 bits, unsigned, calibrated") == ["calibrated", "calibrated, global"]
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
    found = [figures.measured(row, [[{"result": result, "revision": "r"}]]) for row in list(rows.values())[:3]]
    assert [(figure.accuracies, figure.latency, figure.stages) for figure in found] == [
        ([accuracy], steps, ["resnet20-nets/2bit-signed-converted-seed0"]) for steps, accuracy in enumerate(result["readout"], 1)]


def test_nothing_is_run_twice_for_a_flag_or_a_seed_that_does_not_change_it():
    networks = Networks("resnet20", Path("data"), Path("study"), extra=("--compile",))
    assert [stage.name for stage in networks.chain(4, 0)] == ["resnet20-300epochs/32bit-seed0",
                                                              "resnet20-300epochs-compile/4bit-seed0"]
    rows = rows_of("conversion", [1, 2], Path("data"), Path("study"), files=Path("nets"))
    assert [stage.name for stage in rows[-3].stages] == ["resnet20-nets/2bit-unsigned-converted-seed0"]
    assert {row.method: len(row.chains) for row in rows if row.bit == 2} == {
        "converted": 1, "calibrated": 2, "delay 1": 1, "delay 2": 1, "delay 3": 1, "calibrated, 2 of 3 steps": 2,
        "calibrated, global": 2, "calibrated, global, 2 of 3 steps": 2, "layer-wise": 2, "global": 2, "layer-wise, global": 2}
    assert {row.method: row.tuning for row in rows if row.bit == 2} == {
        "converted": "", "calibrated": "512", "delay 1": "", "delay 2": "", "delay 3": "", "calibrated, 2 of 3 steps": "512",
        "calibrated, global": "512 + 40,000", "calibrated, global, 2 of 3 steps": "512 + 40,000", "global": "40,000",
        "layer-wise": "5,000 of 50,000, 1 of 8 epochs", "layer-wise, global": "5,000 of 50,000, 1 of 8 epochs + 40,000"}
    imagenet = [row for row in rows_of("imagenet", [0], Path("data"), Path("study")) if row.method == "layer-wise"]
    assert {row.tuning for row in imagenet} == {"5,000 of 1,281,167"}


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
    with pytest.raises(UserError, match="--seeds 1 0 1: a seed counts once"):
        reproduce.main([*places, "--seeds", "1", "0", "1"])
    monkeypatch.setattr(plan, "probe", lambda *_: Speed(1, 1))
    assert reproduce.main([*places, "--rows", "vgg16", "vgg11"]) == {"cifar10": [], "imagenet": []}
    with pytest.raises(UserError, match="a plan makes no table"):
        reproduce.main([*places, "--readme", str(ROOT / "README.md")])
    (tmp_path / "page.md").write_text("no markers")
    with pytest.raises(UserError, match="put both lines into the file"):
        reproduce.main([*places, "--table", "conversion", "--readme", str(tmp_path / "page.md")])
    with pytest.raises(UserError, match="measures trainings"):
        reproduce.main([*places, "--table", "cifar10", "--networks", "x"])


def figure(neuron: str, method: str, accuracies: list[float], seconds: list[float], **changes) -> Figure:
    entry = {"dataset": "cifar10", "arch": "resnet20", "bit": 2, "neuron": neuron, "method": method, "accuracies": accuracies,
             "last": [], "anns": [88.5] * len(accuracies), "latency": 3, "seconds": seconds, "epochs": "45 of 300", "tuning": "",
             "published": None, "source": None, "stages": ["a"], "revisions": ["r"]}
    return Figure(**(entry | changes))


TRAINED = figure("ANN", "trained", [88.5], [6000.0], last=[88.25], anns=[], latency=None, published=90.96, source="APoT")
FIGURES = [TRAINED, figure("signed", "converted", [86.5], [0.0]), figure("signed", "calibrated", [87.0, 88.0], [30.0, 60.0],
                                                                       tuning="512", stages=["b0", "b1"])]


def test_figures_survive_the_file_and_become_a_table(tmp_path):
    path = tmp_path / "table.json"
    table_file.write(FIGURES, path)
    assert table_file.read(path) == FIGURES
    last = path.with_suffix(".csv").read_text().splitlines()[3]
    assert last == "resnet20,2,signed,calibrated,87.500,0.707,2,,88.500,3,512,0.8,45 of 300,,"
    title, _, head, _, *lines, _, notes, _, trained = markdown.table(FIGURES).splitlines()
    assert trained.startswith("Trained: the best epoch on the test set")
    assert title == "resnet20, 2 bits, T = 3; quantized ANN 88.50"
    assert lines[0] == "| ANN | trained | 88.50 (last epoch 88.25) |  | 90.96 | 45 of 300 |  |  | 100.0 |"
    assert lines[1] == "| signed | converted | 86.50 | -2.00 | none known | 45 of 300 | 3 |  |  |"
    assert lines[2] == "| signed | calibrated | 87.50 ± 0.71 | -1.00 | none known | 45 of 300 | 3 | 512 | 0.8 |"
    assert {line.count("|") for line in lines} == {head.count("|")}
    assert notes == "Published: 90.96: APoT"
    bare = markdown.table([figure("signed", "converted", [86.5], [0.0], epochs="see nets")]).splitlines()
    assert bare[2:] == ["| neuron | method | accuracy, % | to the ANN | latency, steps |", "|---|---|---|---|---|",
                        "| signed | converted | 86.50 | -2.00 | 3 |", "", "No published figures of these rows are known."]
    pictures.draw("cifar10", FIGURES, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw("latency", FIGURES[1:2], tmp_path / "one point.png")
    path.write_text('[{"bit": 2}]')
    with pytest.raises(UserError, match="no table of this version"):
        table_file.read(path)


def test_new_figures_take_the_place_of_those_of_their_row_and_leave_others():
    better = figure("signed", "converted", [87.5], [0.0], epochs="300")
    order = [figure.key for figure in FIGURES]
    assert table_file.merged(FIGURES, [better], order) == [TRAINED, better, FIGURES[2]]
    assert table_file.merged([], [FIGURES[2], TRAINED], order) == [TRAINED, FIGURES[2]]
    fewer = figure("signed", "calibrated", [88.0], [60.0], tuning="512", stages=["b1"])
    assert table_file.merged(FIGURES, [fewer], order) == FIGURES
    anew = replace(fewer, accuracies=[86.0])
    assert table_file.merged(FIGURES, [anew], order) == [*FIGURES[:2], anew]
    other = replace(fewer, stages=["b2"], accuracies=[86.0], seconds=[9.0], revisions=["s"])
    *_, three = table_file.merged(FIGURES, [other], order)
    assert three == replace(FIGURES[2], accuracies=[87.0, 88.0, 86.0], anns=[88.5] * 3, seconds=[30.0, 60.0, 9.0],
                            stages=["b0", "b1", "b2"], revisions=["r", "s"])
    renamed = replace(fewer, stages=["c0"])
    assert table_file.merged(FIGURES, [renamed], order) == [*FIGURES[:2], renamed]


def test_figures_of_other_networks_do_not_get_into_a_table():
    rows = rows_of("cifar10", [0], Path("data"), Path("study"), scale=0.1)
    for bit, stage in ((2, "resnet20-30epochs/4bit-seed0"), (32, "resnet20-30epochs-compile/32bit-seed0")):
        table_file.check_same([figure("ANN", "trained", [88.5], [1.0], bit=bit, stages=[stage])], rows, Path("table"))
    compiled = [figure("ANN", "trained", [88.5], [1.0], stages=["resnet20-30epochs-compile/4bit-seed0"])]
    with pytest.raises(UserError, match="has figures of resnet20-30epochs-compile"):
        table_file.check_same(compiled, rows, Path("table"))
    others = [figure("ANN", "trained", [88.5], [1.0], stages=["resnet20-30epochs-amp/4bit-seed0"])]
    with pytest.raises(UserError, match="table has figures of resnet20-30epochs-amp, these rows are of resnet20-30epochs:"):
        table_file.check_same(others, rows, Path("table"))


def test_a_table_goes_between_its_markers():
    text = "a\n<!-- table x -->\nold\n<!-- end of table x -->\nb"
    assert markdown.insert(text, "x", "new") == "a\n<!-- table x -->\nnew\n<!-- end of table x -->\nb"
    with pytest.raises(UserError, match="table y"):
        markdown.insert(text, "y", "new")


@pytest.mark.parametrize("path", sorted((ROOT / "result").glob("table_*.json")), ids=lambda path: path.stem)
def test_the_readme_shows_the_measured_table(path):
    readme, measured = (ROOT / "README.md").read_text(), table_file.read(path)
    assert markdown.insert(readme, path.stem.removeprefix("table_"), markdown.table(measured)) == readme
    for figure in measured:
        for stage, accuracy in zip(figure.stages, figure.accuracies, strict=True):
            record = json.loads((ROOT / "result" / "study" / stage / "record.json").read_text())
            result, revisions = record["result"], record["revision"].split(", ")
            steps = figure.latency if " steps" in figure.method and "calibrated" not in figure.method else None
            found = result["best"]["test_top1"] if figure.neuron == "ANN" else figures.spiking_accuracy(result, steps)
            assert (found, set(revisions) <= set(figure.revisions)) == (accuracy, True), stage


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


def test_an_interrupted_training_goes_on_without_its_start(network, tmp_path, monkeypatch):
    stage = stage_of("main", network, "--epochs", "2", "--lr", "0.02")
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
        stages.run(stage_of("main", network, "--epochs", "2", "--lr", "0.5"), tmp_path)
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
    log = (tmp_path / "stage" / "resnet20_2bit" / "log.jsonl").read_text().splitlines()
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
    assert stages.run(stage, tmp_path)["start"] == stages.digest(stage)


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
    with pytest.raises(UserError, match="1 rows need networks of which only the figures are here"):
        reproduce.main(argv)
    # What can be measured is, before that is said.
    with pytest.raises(UserError, match="1 rows need networks"):
        reproduce.main([*argv, "--rows", row.name, "resnet20, 4 bits, ANN"])
    assert [figure.method for figure in table_file.read(tmp_path / "table_cifar10.json")] == ["trained"]
    conversion.init.parent.mkdir()
    conversion.init.write_bytes(b"network")
    assert Plan([row], tmp_path).lost == {}


def command(data: Path, where: Path, rows: list[str], epochs: int = 2) -> list[str]:
    """Return the arguments of a run of reproduce.py on a few images."""
    return ["--table", "cifar10", "--epochs-scale", str(epochs / 300), "--rows", *rows, "--data", str(data),
            "--study", str(where / "study"), "--result", str(where / "result")]


def digits(where: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """Return a table and the logs of its runs, with the loss of each epoch, without times and revisions."""
    def timeless(entry: dict) -> dict:
        return {key: value for key, value in entry.items() if key not in ("seconds", "revisions")}

    entries = json.loads((where / "result" / "table_cifar10.json").read_text())
    logs = {str(log.relative_to(where)): [timeless(json.loads(line)) for line in log.read_text().splitlines()]
            for log in sorted(where.glob("study/**/log.jsonl"))}
    return [timeless(entry) for entry in entries], logs


def test_a_killed_table_goes_on_to_the_same_figures(tiny, tmp_path):
    """Kills when a file is renamed: within a training, and between its last epoch and its record."""
    rows = ["resnet20, float, ANN"]

    def job(where: str, moment: tuple | None) -> dict:
        argv = command(tiny, tmp_path / where, rows)
        return {"script": "reproduce", "argv": argv, "resume": argv, "checkpoint": "", "moment": moment,
                "log": str(tmp_path / f"{where}.log")}

    jobs = [job("whole", None), job("broken", ("rename", 6)), job("broken", ("rename", 9)), job("broken", None)]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "killed.py"), str(tmp_path / "jobs.json")], capture_output=True,
                          text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    whole, *kills, last = json.loads(done.stdout)
    assert (whole, last) == (0, 0), (tmp_path / "broken.log").read_text()
    assert all(code < 0 for code in kills)
    entries, logs = digits(tmp_path / "whole")
    assert len(entries) == len(logs) == 1
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
