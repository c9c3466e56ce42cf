"""The page of a run: what it measures, what it is about, that it opens offline."""

import json
import re
from pathlib import Path

import pytest
import torch

import report
from snn_layers import integrate_and_fire, to_spiking
from utils.checkpoints.checkpoint import network_state, save_checkpoint
from utils.errors import UserError
from utils.report import measure, page, run_pictures, sections
from utils.report.subject import Subject, Tuned, checkpoint_of, history_of, read_subject

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SECTIONS = ("Accuracy", "Accuracy against latency", "Layer by layer", "Neurons on the first test image", "Operations and energy",
            "Learning", "Provenance")


@pytest.mark.parametrize(("signed", "delay", "start"), [(True, 0, 0.5), (False, 0, 0.5), (True, 2, 0.5), (True, 1, 0.0)])
def test_traces_are_the_membranes_of_the_spikes(quantized, signed, delay, start):
    snn = to_spiking(quantized, "signed" if signed else "unsigned", delay, start=start)
    found = measure.traces(snn, IMAGES[0], ["body.0", "body.3.part1", "body.9.part2"])
    assert [unit.name for unit in found] == ["body.0", "body.3.part1", "body.9.part2"]
    assert next(snn.parameters()).dtype == torch.float32
    for unit in found:
        after, spikes = unit.membrane, unit.spikes[:, :measure.TRACES]
        assert after.shape == (4, measure.TRACES)
        assert (after[0] == start).all()
        before = after[1:] + spikes  # before the reset, in θ
        assert torch.equal(before >= 1 - 1e-6, spikes == 1)
        assert (before[spikes == -1] <= 0).all()
        # The same currents, as they change the membrane from step to step, make the same spikes.
        if delay == 0:
            current = before - after[:-1]
            assert torch.equal(integrate_and_fire(current.double() + 1e-6, torch.tensor(1.0), signed, 0, start).float(), spikes)


def check_page(text: str, tuned: str, logs: int) -> None:
    """Check a page with the learning curves of so many logs, two pictures each."""
    assert tuple(re.findall("<h2>(.*?)</h2>", text)) == SECTIONS
    assert text.count("<img ") == text.count('src="data:image/png;base64,') == 7 + 2 * logs
    assert not re.findall(r"https?://|<script|<link|@import|url\(", text)
    assert 'name="viewport"' in text
    for cell in (tuned, "quantized ANN, zero activations skipped", "FP32, µJ", "revision", "SHA-256"):
        assert cell in text


def test_a_page_holds_its_pictures_and_opens_offline(small, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(b"weights")
    history = [{"epoch": epoch, "train_top1": 1.0, "test_top1": 2.0, "train_loss": 3.0, "test_loss": 4.0} for epoch in range(2)]
    tuned = Tuned("signed, tuned", to_spiking(small), [], path)
    subject = Subject("small", tmp_path, path, {"history": history, "revision": "r", "args": {"lr": 0.1}}, small, [tuned])
    batches = [(IMAGES[:3, :, :9, :7], torch.tensor([0, 1, 2])), (IMAGES[3:, :, :9, :7], torch.tensor([3]))]
    parts, numbers = sections.spiking_sections(subject, batches)
    parts += [sections.learning_section(subject), sections.provenance(subject, 4)]
    check_page(page.page("small", parts), "signed, tuned", logs=1)
    read = json.loads(json.dumps(numbers))
    assert read == numbers
    assert (read["images"], [snn["name"] for snn in read["snns"]]) == (4, ["unsigned", "signed", "signed, tuned"])
    ann, signed = read["ann"], read["snns"][1]
    macs = sum(layer["macs"] for layer in signed["operations"])
    adds = sum(layer["adds"] for layer in signed["operations"])
    assert ann["energy"]["FP32"] == pytest.approx((4.6 * macs + 0.9 * adds) / 1e6)
    additions = sum(layer["acs"] for layer in signed["operations"])
    assert signed["energy"]["INT8"] == pytest.approx((0.23 * signed["operations"][0]["macs"] + 0.03 * additions) / 1e6)
    assert ann["energy_without_zeros"]["INT8"] < ann["energy"]["INT8"]
    assert read["delays"]["signed"][0]["readout"] == signed["readout"]
    assert read["delays"]["signed"][-1]["readout"][-1] == ann["top1"]


@pytest.mark.slow
def test_report_draws_a_published_network(tiny, tmp_path, find):
    path, = report.main([str(find("result/published/resnet20_2bit.pth.tar")), "--data", str(tiny), "--images", "8", "--output",
                         str(tmp_path / "page.html")])
    check_page(path.read_text(), "signed, calibrated, global", logs=2)  # of the training, and of tuning through time
    assert json.loads(path.with_suffix(".json").read_text())["images"] == 8


def test_a_report_of_a_published_file_is_told_what_the_file_does_not_hold(recorded, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(recorded("cifar10_res_resnet20_3bit")[1], path)
    with pytest.raises(UserError, match="--bit"):
        read_subject(path, "resnet20")
    subject = read_subject(path, "resnet20", bit=3)
    assert (subject.title, subject.network.bit, subject.tuned) == ("resnet20, net.pth", 3, [])


def test_a_start_for_training_has_no_report(find):
    with pytest.raises(UserError, match="lacks thresholds or statistics"):
        read_subject(find("checkpoints/apot_resnet20_4bit.pth.tar"), "resnet20", bit=4)


def test_a_report_finds_its_run_and_the_tunings_of_it(quantized, tmp_path):
    assert quantized.arch == "resnet20"

    def save(name: str, **more) -> Path:
        path = tmp_path / name / "model_best.pth.tar"
        path.parent.mkdir(parents=True)
        save_checkpoint(path, network_state(quantized) | {"history": [], "revision": "r"} | more)
        return path

    summary = {"neuron": "unsigned", "delay": 1, "ann": 1.0, "before": 1.0}
    ann = save("group/2bit-seed0/resnet20_2bit")
    ours = save("group/2bit-unsigned-x-seed0/resnet20_2bit_ft", finetune=summary, args={"init": str(ann), "method": "layerwise"})
    save("group/2bit-signed-y-seed0/resnet20_2bit_ft", finetune=summary, args={"init": str(tmp_path / "other"), "method": "global"})
    other = save("group/2bit-unsigned-z-seed0/resnet20_2bit_ft_start0", finetune=summary | {"start": 0.0, "steps": 2, "delay": 0},
                 args={"init": str(ann), "method": "layerwise"})
    save("group/2bit-unsigned-z-seed0/resnet20_2bit_ft_test", finetune=summary, args={"init": str(ann), "method": "layerwise"})
    subject = read_subject(tmp_path / "group" / "2bit-seed0")
    assert subject.path == ann
    assert subject.page == tmp_path / "group" / "2bit-seed0" / "report.html"
    assert [(tuned.name, tuned.path) for tuned in subject.tuned] == [
        ("unsigned, layer-wise, delay 1", ours), ("unsigned, layer-wise, start 0, 2 steps", other)]
    of_tuning = read_subject(ours.parent)
    assert (of_tuning.path, [tuned.path for tuned in of_tuning.tuned]) == (ann, [ours])
    # Tuned again: the ANN is still the network that was never tuned; without --init it is the run beside the tuning.
    again = save("group/2bit-unsigned-x-y-seed0/resnet20_2bit_ft_global", finetune=summary,
                 args={"init": str(ours), "method": "global"})
    assert read_subject(again.parent).path == ann
    # And with another seed: each has a name of its own, since the page keeps its numbers by name.
    seed = save("group/2bit-unsigned-x-seed1/resnet20_2bit_ft", finetune=summary, args={"init": str(ann), "method": "layerwise"})
    assert {tuned.path: tuned.name for tuned in read_subject(ann).tuned} == {
        ours: "unsigned, layer-wise, delay 1, 2bit-unsigned-x-seed0/resnet20_2bit_ft",
        seed: "unsigned, layer-wise, delay 1, 2bit-unsigned-x-seed1/resnet20_2bit_ft",
        other: "unsigned, layer-wise, start 0, 2 steps", again: "unsigned, layer-wise, global, delay 1"}
    alone, beside = save("run/resnet20_2bit"), save("run/resnet20_2bit_ft", finetune=summary, args={"init": None})
    assert read_subject(beside.parent).path == alone
    ann.unlink()
    assert "tuned from" in read_subject(ours.parent).notes[0]
    with pytest.raises(UserError, match="name the directory of one run"):
        checkpoint_of(tmp_path / "group" / "2bit-seed0")


def test_a_page_shows_the_epochs_after_the_best_one(quantized, tmp_path):
    best, log = tmp_path / "model_best.pth.tar", tmp_path / "log.jsonl"
    lines = [{"epoch": epoch, "test_top1": 2.0} for epoch in range(3)]
    assert history_of(best, {"history": lines[:2]}) == lines[:2]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert history_of(best, {"history": lines[:2]}) == lines
    assert history_of(tmp_path / "other.pth.tar", {"history": lines[:2]}) == lines[:2]
    assert history_of(best, {"history": [{"epoch": 0, "test_top1": 3.0}]}) == [{"epoch": 0, "test_top1": 3.0}]  # of another run
    save_checkpoint(best, network_state(quantized) | {"history": lines[:2]})
    assert read_subject(tmp_path).contents["history"] == lines
    log.write_text(log.read_text()[:-5])
    assert read_subject(tmp_path).contents["history"] == lines[:2]


def test_names_that_have_no_room_become_numbers():
    def labels(names: list[str], first: int = 1) -> list[str]:
        canvas, axes = run_pictures.axes_of("layer", "value")
        run_pictures.name_layers(axes, names, first)
        found = [label.get_text() for label in axes.get_xticklabels()]
        run_pictures.picture(canvas)
        return found

    assert labels(["body.0", "body.1.part2", "body.10"]) == ["0", "1.2", "10"]
    assert labels(["body.0", "features.denseblock1.relu"]) == ["1", "2"]
    assert labels([f"body.{index}" for index in range(40)])[:2] == ["1", "5"]
    assert labels(["blocks.activation"] * 3, first=2) == ["2", "3", "4"]  # the first layer is never tuned
    assert run_pictures.short("features.denseblock1.relu", 6) == "….relu"


def test_a_log_of_layerwise_tuning_has_a_curve():
    log = [{"unit": unit, "name": f"body.{unit}.part1", "accuracy_after": 90.0 + unit} for unit in range(1, 4)]
    (title, png), = run_pictures.learning(log)
    assert title == "Accuracy while the units are tuned"
    assert png.startswith(b"\x89PNG")


def test_pages_of_several_runs_have_their_own_places():
    with pytest.raises(UserError, match="2 runs make 2 pages"):
        report.main(["a", "b", "--output", "c.html"])


@pytest.mark.parametrize(("output", "message"), [("c.json", "a page is a .html file"), ("no/c.html", "there is no directory no")])
def test_a_page_that_cannot_be_written_is_refused_before_it_is_measured(output, message):
    with pytest.raises(UserError, match=message):
        report.main(["result/published/resnet20_2bit.pth.tar", "--output", output])


def test_the_provenance_leaves_out_only_what_was_not_given(tmp_path):
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(b"weights")
    args = {"seed": 0, "start": 0.0, "lr": 0.1, "init": None, "unsigned": False, "directories": []}
    *_, (_, given) = sections.facts(path, {"args": args})
    assert given == "lr=0.1 seed=0 start=0.0"


def test_the_tables_have_the_energies_of_the_report_in_git():
    root = Path(__file__).parent.parent
    text, read = (root / "result/tables.md").read_text(), json.loads((root / "result/published/resnet20_3bit.json").read_text())
    unsigned, signed, *_ = read["snns"]

    def millions(snn: dict, kind: str, layers: slice = slice(None)) -> str:
        return f"{sum(layer[kind] for layer in snn['operations'][layers]) / 1e6:.1f} million"

    ann, skipped = read["ann"]["energy"], read["ann"]["energy_without_zeros"]
    for part in (f"takes {millions(signed, 'macs')} multiply-accumulates", f"{ann['FP32']:.0f} µJ in FP32 and {ann['INT8']:.2f} µJ",
                 f"{skipped['INT8']:.2f} µJ where it skips",
                 f"signed SNN {millions(signed, 'macs', slice(1))} and {millions(signed, 'acs')} additions",
                 *(f"{millions(snn, 'acs')} additions, {snn['energy']['FP32']:.1f} and {snn['energy']['INT8']:.2f} µJ"
                   for snn in (unsigned, signed))):
        assert part in " ".join(text.split()), part
