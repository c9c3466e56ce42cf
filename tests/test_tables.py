"""A table's results: its files, its Markdown, and the copy in git against the records."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.study import markdown, pictures, results, table_file
from utils.study.results import Result
from utils.study.tables import rows_of

ROOT = Path(__file__).parent.parent


def result(neuron: str, method: str, accuracies: list[float], seconds: list[float], **changes) -> Result:
    entry = {"dataset": "cifar10", "arch": "resnet20", "bit": 2, "neuron": neuron, "method": method, "accuracies": accuracies,
             "last": [], "anns": [88.5] * len(accuracies), "latency": 3, "seconds": seconds, "epochs": "45 of 300", "tuning": "",
             "published": None, "source": None, "stages": ["a"], "revisions": ["r"]}
    return Result(**(entry | changes))


TRAINED = result("ANN", "trained", [88.5], [6000.0], last=[88.25], anns=[], latency=None, published=90.96, source="APoT")
RESULTS = [TRAINED, result("signed", "converted", [86.5], [0.0]), result("signed", "calibrated", [87.0, 88.0], [30.0, 60.0],
                                                                       tuning="512", stages=["b0", "b1"])]


def test_figures_survive_the_file_and_become_a_table(tmp_path):
    path = tmp_path / "table.json"
    table_file.write(RESULTS, path)
    assert table_file.read(path) == RESULTS
    last = path.with_suffix(".csv").read_text().splitlines()[3]
    assert last == "resnet20,2,signed,calibrated,87.500,0.707,2,,88.500,3,512,0.8,45 of 300,,"
    title, _, head, _, *lines, _, notes, _, trained = markdown.table(RESULTS).splitlines()
    assert trained.startswith("Trained: the best epoch on the test set")
    assert title == "resnet20, 2 bits, T = 3; quantized ANN 88.50"
    assert lines[0] == "| ANN | trained | 88.50 (last epoch 88.25) |  | 90.96 | 45 of 300 |  |  | 100.0 |"
    assert lines[1] == "| signed | converted | 86.50 | -2.00 | none known | 45 of 300 | 3 |  |  |"
    assert lines[2] == "| signed | calibrated | 87.50 ± 0.71 | -1.00 | none known | 45 of 300 | 3 | 512 | 0.8 |"
    assert {line.count("|") for line in lines} == {head.count("|")}
    assert notes == "Published: 90.96: APoT"
    bare = markdown.table([result("signed", "converted", [86.5], [0.0], epochs="see nets")]).splitlines()
    assert bare[2:] == ["| neuron | method | accuracy, % | to the ANN | latency, steps |", "|---|---|---|---|---|",
                        "| signed | converted | 86.50 | -2.00 | 3 |", "", "No published results of these rows are known."]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw("latency", RESULTS[1:2], tmp_path / "one point.png")
    path.write_text('[{"bit": 2}]')
    with pytest.raises(UserError, match="no table of this version"):
        table_file.read(path)


def test_a_picture_shows_the_figures_of_its_table(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda canvas, *_, **__: drawn.append(canvas))
    pictures.draw("cifar10", RESULTS, tmp_path / "table.png")
    axes, = drawn[0].axes
    points = next(line for line in axes.lines if line.get_label() == "signed neurons")
    assert list(points.get_xdata()) == [86.5, 87.5]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["converted", "calibrated"]
    assert any(set(line.get_xdata()) == {88.5} for line in axes.lines if line.get_label() == "quantized ANN")


def test_new_figures_take_the_place_of_those_of_their_row_and_leave_others():
    better = result("signed", "converted", [87.5], [0.0], epochs="300")
    order = [result.key for result in RESULTS]
    assert table_file.merged(RESULTS, [better], order) == [TRAINED, better, RESULTS[2]]
    assert table_file.merged([], [RESULTS[2], TRAINED], order) == [TRAINED, RESULTS[2]]
    fewer = result("signed", "calibrated", [88.0], [60.0], tuning="512", stages=["b1"])
    assert table_file.merged(RESULTS, [fewer], order) == RESULTS
    anew = replace(fewer, accuracies=[86.0])
    assert table_file.merged(RESULTS, [anew], order) == [*RESULTS[:2], anew]
    other = replace(fewer, stages=["b2"], accuracies=[86.0], seconds=[9.0], revisions=["s"])
    *_, three = table_file.merged(RESULTS, [other], order)
    assert three == replace(RESULTS[2], accuracies=[87.0, 88.0, 86.0], anns=[88.5] * 3, seconds=[30.0, 60.0, 9.0],
                            stages=["b0", "b1", "b2"], revisions=["r", "s"])
    renamed = replace(fewer, stages=["c0"])
    assert table_file.merged(RESULTS, [renamed], order) == [*RESULTS[:2], renamed]


def test_figures_of_other_networks_do_not_get_into_a_table():
    rows = rows_of("cifar10", [0], Path("data"), Path("study"), scale=0.1)
    for bit, stage in ((2, "resnet20-30epochs/4bit-seed0"), (32, "resnet20-30epochs-compile/32bit-seed0")):
        table_file.check_same([result("ANN", "trained", [88.5], [1.0], bit=bit, stages=[stage])], rows, Path("table"))
    compiled = [result("ANN", "trained", [88.5], [1.0], stages=["resnet20-30epochs-compile/4bit-seed0"])]
    with pytest.raises(UserError, match="has results of resnet20-30epochs-compile"):
        table_file.check_same(compiled, rows, Path("table"))
    others = [result("ANN", "trained", [88.5], [1.0], stages=["resnet20-30epochs-amp/4bit-seed0"])]
    with pytest.raises(UserError, match="table has results of resnet20-30epochs-amp, these rows are of resnet20-30epochs:"):
        table_file.check_same(others, rows, Path("table"))


def test_networks_from_elsewhere_go_from_float_to_three_bits():
    rows = [row for row in rows_of("elsewhere", [0], Path("data"), Path("study"), scale=0.01) if row.networks.arch.endswith("vgg")]
    assert [row.bit for row in rows] == [32, 3, 3, 3, 3, 3, 3]
    _, trained, *_, waiting = (row.chains[0] for row in rows)
    assert trained[-1].init == Path("study/vgg-vgg-3epochs/32bit-seed0/vgg-vgg_32bit/model_best.pth.tar")
    assert [trained[0].flag("--lr"), trained[1].flag("--lr")] == ["0.02", "0.008"]
    assert waiting[:2] == trained
    assert waiting[2].name == "vgg-vgg-3epochs/3bit-unsigned-delay7-seed0"
    assert [waiting[2].flag("--arch"), waiting[2].flag("--delay")] == ["examples/vgg.py:vgg", "7"]


def test_a_table_goes_between_its_markers():
    text = "a\n<!-- table x -->\nold\n<!-- end of table x -->\nb"
    assert markdown.insert(text, "x", "new") == "a\n<!-- table x -->\nnew\n<!-- end of table x -->\nb"
    with pytest.raises(UserError, match="table y"):
        markdown.insert(text, "y", "new")


@pytest.mark.parametrize("path", sorted((ROOT / "result").glob("table_*.json")), ids=lambda path: path.stem)
def test_the_page_in_git_shows_the_measured_table(path):
    page, measured = (ROOT / "result" / "tables.md").read_text(), table_file.read(path)
    assert markdown.insert(page, path.stem.removeprefix("table_"), markdown.table(measured)) == page
    for result in measured:
        for stage, accuracy in zip(result.stages, result.accuracies, strict=True):
            record = json.loads((ROOT / "result" / "study" / stage / "record.json").read_text())
            run, revisions = record["result"], record["revision"].split(", ")
            steps = result.latency if " steps" in result.method and "calibrated" not in result.method else None
            found = run["best"]["test_top1"] if result.neuron == "ANN" else results.spiking_accuracy(run, steps)
            assert (found, set(revisions) <= set(result.revisions)) == (accuracy, True), stage
