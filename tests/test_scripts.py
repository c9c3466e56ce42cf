"""The scripts end to end, on digits."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import TINY, TINY_RUN

import main
import snn
import snn_ft
from models.plain import plain_network
from models.registry import REGISTRY
from snn_layers import deploy
from utils.checkpoints.checkpoint import load_network, read_checkpoint, save_checkpoint, tunings
from utils.checkpoints.importer import apot_layout, published_names
from utils.config import RunSettings
from utils.data import splits
from utils.data.cifar import ImageSet, load_images
from utils.errors import UserError
from utils.training import engine, loading, session, train

SMALL = ["--arch", TINY, "--dataset", "digits", "-b", "16"]
TEST_IMAGES = 90


@pytest.fixture(scope="module", autouse=True)
def few():
    """Let the scripts see a third of the digits to train on, and a quarter of those to test on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "load_images", lambda *args: some_of(load_images(*args), slice(None, None, 3 if args[2] else 4)))
        yield


def some_of(images: ImageSet, which: slice) -> ImageSet:
    return replace(images, images=images.images[which], labels=images.labels[which])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Return a result directory with a float and a 2-bit run of two epochs each."""
    root = tmp_path_factory.mktemp("result")
    flags = [*SMALL, "--result", str(root), "--epochs", "2"]
    main.main([*flags, "--bit", "32", "--lr", "0.05"])
    main.main([*flags, "--bit", "2", "--lr", "0.02", "--init", str(root / f"{TINY_RUN}_32bit" / "model_best.pth.tar")])
    return root


@pytest.fixture
def short(monkeypatch):
    """Make a smoke test one of two batches."""
    monkeypatch.setattr(RunSettings, "limit", property(lambda run: 2 if run.test else None))


def flags(result, bit=2):
    return [*SMALL, "--result", str(result), "--bit", str(bit)]


def test_a_run_leaves_its_checkpoints_arguments_and_log(result):
    path = result / f"{TINY_RUN}_2bit"
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.pth.tar", "config.json", "log.jsonl", "model_best.pth.tar"]
    config = json.loads((path / "config.json").read_text())
    assert config["settings"]["training"]["lr"] == 0.02
    assert config["versions"]["torch"] == torch.__version__
    assert config["revision"]
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert {"lr", "test_top1", "train_top1", "seconds"} <= lines[0].keys()


def test_the_float_network_learns_digits(result, capsys):
    scores = main.main([*flags(result, 32), "-e"])["scores"]
    assert scores.count == TEST_IMAGES
    assert scores.top1 > 30
    assert f"top-1 {scores.top1:.2f} %" in capsys.readouterr().out


def test_the_best_checkpoint_is_that_of_the_best_epoch(result):
    history = read_checkpoint(result / f"{TINY_RUN}_2bit" / "checkpoint.pth.tar")["history"]
    best = main.main([*flags(result), "-e"])["scores"].top1
    assert best == pytest.approx(max(line["test_top1"] for line in history), abs=1e-4)


def test_a_finished_run_is_not_overwritten_unless_told(result, tmp_path):
    run = [*SMALL, "--result", str(tmp_path), "-t"]
    main.main(run)
    directory = tmp_path / f"{TINY_RUN}_32bit_test"
    assert (directory / "model_best.pth.tar").exists()
    main.main(run)  # a smoke test replaces its own directory
    again = [*flags(result), "--epochs", "2"]
    with pytest.raises(UserError, match=r"holds a run already: --resume .* --overwrite"):
        main.main(again)
    kept = main.main([*again, "--resume"])
    assert kept["last"]["epoch"] == 1


def test_a_network_without_its_run_is_not_deleted_either(result, tmp_path):
    best = tmp_path / f"{TINY_RUN}_2bit" / "model_best.pth.tar"
    best.parent.mkdir()
    shutil.copy(result / best.parent.name / best.name, best)
    before, run = best.read_bytes(), [*flags(tmp_path), "--epochs", "1"]
    with pytest.raises(UserError, match=r"model_best.pth.tar is there already: --overwrite"):
        main.main(run)
    with pytest.raises(UserError, match=r"would delete this file in its own directory; --result DIR"):
        main.main([*run, "--init", str(best), "--overwrite"])
    assert best.read_bytes() == before


def test_a_published_quantized_network_is_known_wherever_its_file_keeps_it():
    state = {"layer0.block.2.act_alpha": torch.ones(())}
    assert [train.published_bit(contents, "file", 4) for contents in (state, {"state_dict": state}, {"model": state})] == [4, 4, 4]
    assert train.published_bit({"model": {"conv.weight": torch.ones(())}}, "file", 4) is None


def test_a_tuned_network_that_names_itself_as_its_start_is_found(result, tmp_path):
    path = tmp_path / f"{TINY_RUN}_2bit_ft" / "model_best.pth.tar"
    path.parent.mkdir()
    save_checkpoint(path, read_checkpoint(result / f"{TINY_RUN}_2bit" / path.name) | {"finetune": {}, "args": {"init": str(path)}})
    found, start = tunings(path)
    assert (len(found), start) == (1, path)


def test_resuming_with_other_arguments_says_so(result, capsys):
    main.main([*flags(result), "--epochs", "2", "--lr", "0.5", "--resume"])
    assert "--lr 0.5; it was 0.02" in capsys.readouterr().err


def test_evaluation_prints_both_networks_and_the_table(result, capsys):
    outcome = snn.main([*flags(result), "-e"])
    printed = capsys.readouterr().out
    assert f"{outcome['snn'].top1:.2f} %" in printed
    assert f"{outcome['ann'].top1:.2f} %" in printed
    assert outcome["ann"].top1 == main.main([*flags(result), "-e"])["scores"].top1
    assert re.search(r"latency +3 steps", printed)
    *early, full = outcome["readout"]
    assert full == outcome["snn"].top1
    assert f"{early[0]:.2f}, {early[1]:.2f} % after 1, 2 steps" in printed
    assert snn.main([*flags(result), "-e", "--steps", "2"])["snn"].top1 == early[1]
    assert len(re.findall(r"^body\.\S+ +\d", printed, re.MULTILINE)) == 5


def test_accuracies_are_the_same_without_statistics_and_with_both_networks_deployed(result, capsys, monkeypatch):
    expected = snn.main([*flags(result), "-e"])
    table = capsys.readouterr().out
    monkeypatch.setattr(loading, "deploy", lambda network, compile=False: deploy(network, compile=False))
    monkeypatch.setattr(loading, "COMPILED_FROM", 1)
    found = snn.main([*flags(result), "-e"])
    assert "layer " in table
    assert capsys.readouterr().out == table
    assert found["layers"] != expected["layers"]  # sums of integers beside sums of floats
    short = snn.main([*flags(result), "-e", "--no-statistics"])
    assert "layers" not in short
    assert table.startswith(capsys.readouterr().out)
    assert found["ann"].top1 == short["ann"].top1 == expected["ann"].top1
    assert found["readout"] == short["readout"] == expected["readout"]


def test_full_delay_scores_what_the_ann_scores(result):
    outcome = snn.main([*flags(result), "-e", "-u", "--delay", "3"])
    assert outcome["snn"].top1 == outcome["ann"].top1
    assert outcome["latency"] == 3 + 4 * 3


def test_without_e_the_test_set_is_not_read(result, monkeypatch):
    read = []
    load = splits.load_images
    monkeypatch.setattr(splits, "load_images", lambda *args: read.append(args[2]) or load(*args))
    assert snn.main([*flags(result), "-t"])["snn"].count == 160
    assert read == [True]


def test_tuning_saves_a_network_that_snn_loads(result, capsys):
    tune = [*flags(result), "-n", "2", "--lr", "0.1", "--force", "--check-images", "16", "--calib", "32"]
    tuned = snn_ft.main(tune)
    path = result / f"{TINY_RUN}_2bit_ft"
    assert tuned["directory"] == path
    before, after = (read_checkpoint(p)["state_dict"] for p in (result / f"{TINY_RUN}_2bit" / "model_best.pth.tar",
                                                               path / "model_best.pth.tar"))
    assert any(not torch.equal(before[key], after[key]) for key in after)
    outcome = snn.main([*flags(result), "-e", "--init", str(path / "model_best.pth.tar")])
    assert outcome["snn"].top1 == pytest.approx(tuned["after"])
    assert outcome["ann"].top1 == tuned["ann"] == snn.main([*flags(result), "-e"])["ann"].top1  # not that of the tuned weights
    assert f"tuned: {tuned['before']:.2f} -> {tuned['after']:.2f} %" in capsys.readouterr().out
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert [line["unit"] for line in lines] == list(range(1, 5))
    assert all(len(line["losses"]) == line["kept_epochs"] == 2 for line in lines)
    with pytest.raises(UserError, match="has delay 0"):
        snn_ft.main([*tune, "--delay", "1", "--resume"])
    alone = ["--init", str(shutil.copy(path / "model_best.pth.tar", result / "alone_ft.pth.tar"))]
    snn.main([*flags(result), "-e", "-t", *alone])
    assert "the tuned weights serve as the ANN" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"alone\.pth\.tar, which \S*alone_ft\.pth\.tar was tuned from, is not here"):
        snn_ft.main([*tune, *alone, "--overwrite"])  # else it would learn from the tuned weights and call them the ANN


def test_a_cache_too_small_goes_online_and_says_so(result, tmp_path, capsys, short):
    init = ["--init", str(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar"), "--result", str(tmp_path)]
    snn_ft.main([*SMALL, "--bit", "2", *init, "--cache", "0", "-t", "-b", "2"])
    assert "going --online" in capsys.readouterr().out


def test_prof_prints_operators(result, capsys, short):
    snn.main([*flags(result), "-e", "--prof", "-b", "4"])
    assert "aten::" in capsys.readouterr().out


PUBLISHED = """
main.py --arch alex --bit 32 -id 2 --wd 5e-4
main.py --arch alex --bit 4 -id 2 --wd 1e-4  --lr 4e-2 --init result/alex_32bit/model_best.pth.tar
main.py --arch alex --bit 3 -id 2 --wd 1e-4  --lr 4e-2 --init result/alex_4bit/model_best.pth.tar
main.py --arch alex --bit 2 -id 2 --wd 3e-5  --lr 4e-2 --init result/alex_3bit/model_best.pth.tar
snn.py --arch alex --bit 3 -id 2 -e -u --init result/alex_3bit/model_best.pth.tar
snn_ft.py --arch alex --bit 3 -id 2  -n 8 --init result/alex_3bit/model_best.pth.tar
"""


def narrow_alex(num_classes):
    """Return AlexNet with an eighth of the channels."""
    return plain_network([12, (32, 2), (48, 2), 48, (32, 2)], [512, 256], num_classes)


@pytest.mark.parametrize("narrow", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_published_command_lines_run_as_they_stand(tmp_path, capsys, short, monkeypatch, narrow):
    """As published, in order, with -t (a smoke test, which writes to directories of its own), small batches and 40 digits."""
    if narrow:
        monkeypatch.setitem(REGISTRY["cifar"], "alex", (narrow_alex, REGISTRY["cifar"]["alex"][1]))
    monkeypatch.setattr(splits, "load_images", lambda *args: some_of(load_images(*args), slice(40)))
    for line in PUBLISHED.strip().splitlines():
        name, *arguments = line.replace("result/", f"{tmp_path}/").replace("bit/", "bit_test/").split()
        script = {"main.py": main, "snn.py": snn, "snn_ft.py": snn_ft}[name]
        script.main([*arguments, "-t", "-b", "4", "--dataset", "digits", "--result", str(tmp_path)])
        if not torch.cuda.is_available():
            assert capsys.readouterr().err.count("no GPU here: -id 2 is ignored, the CPU is used") == 1


def test_checkpoints_of_other_data_sets_are_refused(result):
    with pytest.raises(UserError, match="holds dataset digits, not cifar10"):
        snn.main(["--arch", TINY, "--bit", "2", "--init", str(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar")])


def test_a_start_for_training_is_neither_evaluated_nor_converted(result, tmp_path):
    network = load_network(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar", TINY)
    state = network.state_dict()
    path = tmp_path / "apot.pth.tar"
    torch.save({theirs: state[ours] for ours, theirs in published_names(network, dict(apot_layout(network))).items()}, path)
    for script in (snn, snn_ft, main):
        with pytest.raises(UserError, match="trains it first"):
            script.main([*flags(tmp_path), "--init", str(path), *(["-e"] if script is main else [])])


def test_cifar100_from_the_official_files(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("train.bin", "test.bin"):
        records = torch.randint(256, (40, 2 + 3072), generator=generator, dtype=torch.uint8)
        records[:, 1] = torch.arange(40) + 60
        (folder / name).write_bytes(records.numpy().tobytes())
    run = main.main(["--arch", "resnet20", "-ct", "100", "-b", "10", "-t", "--data", str(tmp_path), "--result", str(tmp_path)])
    network = load_network(run["directory"] / "model_best.pth.tar")
    assert (network.dataset, network.head.out_features) == ("cifar100", 100)


@pytest.mark.parametrize("teacher", [[], ["--teacher"]])
def test_global_tuning_lifts_the_spiking_network(result, tmp_path, teacher, capsys):
    init = ["--init", str(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar"), "--result", str(tmp_path)]
    run = [*SMALL, "--bit", "2", "--method", "global", "-u", "-n", "2", "--lr", "1e-3", "--calib", "320", "--check-images", "32",
           *init, *teacher]
    tuned = snn_ft.main(run)
    assert tuned["directory"] == tmp_path / f"{TINY_RUN}_2bit_ft_global_unsigned"
    lines = [json.loads(line) for line in (tuned["directory"] / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert tuned["after"] > tuned["before"]
    assert snn_ft.main([*run, "--resume"]) == tuned
    assert "optimizer" in read_checkpoint(tuned["directory"] / "checkpoint.pth.tar")
    for neuron, said in (["-u"], False), ([], True):  # signed neurons would spoil what unsigned ones have learned
        snn.main([*SMALL, "--bit", "2", "-e", "-t", *neuron, "--init", str(tuned["directory"] / "model_best.pth.tar")])
        assert ("was tuned with --neuron unsigned: that scores it" in capsys.readouterr().err) is said


@pytest.mark.parametrize(("tuned", "flags", "others"), [
    ({"neuron": "signed", "delay": 0, "start": 0.5, "steps": 3}, [], ""),
    ({"neuron": "signed", "delay": 0}, [], ""),  # of earlier versions
    ({}, ["-u"], ""),
    ({"neuron": "unsigned", "delay": 2, "start": 0.5, "steps": 3}, ["-u"], "--delay 2"),
    ({"neuron": "unsigned", "delay": 2, "start": 0.0, "steps": 3}, ["-u", "--delay", "2", "--start", "0"], ""),
    ({"neuron": "unsigned", "delay": 0, "start": 0.5, "steps": 3}, ["--start", "0", "--steps", "2"],
     "--neuron unsigned --start 0.5 --steps 3"),
    ({"neuron": "leaky", "delay": 0, "start": 0.5, "steps": 2}, [], "--neuron FILE.py:leaky --steps 2")])
def test_flags_that_differ_from_those_of_a_tuning_are_told(tuned, flags, others):
    assert loading.other_neurons(snn.parse(["-a", "resnet20", "--bit", "2", *flags]).spiking, tuned, 2) == others


def test_global_tuning_that_harms_says_so(result, tmp_path, capsys):
    init = ["--init", str(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar"), "--result", str(tmp_path)]
    snn_ft.main([*SMALL, "--bit", "2", "--method", "global", "--lr", "0.15", "-t", *init])
    assert "lower --lr" in capsys.readouterr().err


def test_both_networks_are_scored_in_float32_beside_a_tuning_in_bfloat16(result, tmp_path, monkeypatch):
    scored: list[torch.dtype] = []

    def evaluate(network, *how, **flags):
        handle = network.register_forward_hook(lambda module, images, logits: scored.append(logits.dtype))
        try:
            return engine.evaluate(network, *how, **flags)
        finally:
            handle.remove()

    monkeypatch.setattr(session, "evaluate", evaluate)
    few = ["-n", "1", "--calib", "16", "--check-images", "16", "--init", str(result / f"{TINY_RUN}_2bit" / "model_best.pth.tar")]
    snn_ft.main([*SMALL, "--bit", "2", "--method", "through-time", "--amp", "--result", str(tmp_path), *few])
    assert len(scored) >= 3  # the ANN, the spiking network before and after
    assert set(scored) == {torch.float32}


def test_calibration_brings_the_spiking_network_closer(result):
    plain, calibrated = (snn.main([*flags(result), "-e", "-u", "--calibrate", count]) for count in ("0", "128"))
    assert plain["ann"] == calibrated["ann"]
    assert sum(row.error for row in calibrated["layers"]) < sum(row.error for row in plain["layers"])


def test_overwrite_removes_the_run_and_nothing_else(tiny, tmp_path):
    run = ["--arch", TINY, "--data", str(tiny), "-b", "16", "--epochs", "1", "--bit", "32", "--result", str(tmp_path)]
    (tmp_path / "real").mkdir()
    (tmp_path / f"{TINY_RUN}_32bit").symlink_to(tmp_path / "real")
    main.main(run)
    (tmp_path / "real" / "notes.txt").write_text("mine")
    main.main([*run, "--overwrite", "--seed", "1", "--weight-bit", "32"])
    assert (tmp_path / "real" / "notes.txt").read_text() == "mine"
    assert read_checkpoint(tmp_path / "real" / "checkpoint.pth.tar")["args"]["seed"] == 1
    with pytest.raises(UserError, match="choose one"):
        main.main([*run, "--overwrite", "--resume"])


def test_memory_format_precision_and_determinism_flags_keep_the_result(result):
    reference = main.main([*flags(result), "-e"])["scores"]
    for extra in (["--channels-last", "False"], ["--deterministic"], ["--amp"]):
        scores = main.main([*flags(result), "-e", *extra])["scores"]
        assert scores.loss == pytest.approx(reference.loss, rel=0.2 if extra == ["--amp"] else 1e-3), extra
