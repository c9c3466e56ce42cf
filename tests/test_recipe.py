"""What training can do beyond the published recipe: warm-up, rates of the clips, averages, teachers, smoothing."""

from copy import deepcopy

import pytest
import torch
from helpers import TINY, TINY_RUN
from torch import nn

import main
from models import build
from quant import quantize_
from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint
from utils.checkpoints.resume import random_state, restore_, restore_random
from utils.checkpoints.rundir import RunDirectory, plain
from utils.errors import UserError
from utils.settings import FAST
from utils.training.engine import epoch_rate, sgd, train_epoch
from utils.training.step import Step


def test_a_warm_up_rises_to_the_rate_and_the_cosine_falls_after_it():
    rates = [epoch_rate(0.2, "cosine", epoch, 10, warmup=2)(part) for epoch in range(10) for part in (0, 0.5)]
    assert rates[:4] == pytest.approx([0.001, 0.051, 0.101, 0.151])
    assert rates[4] == pytest.approx(0.2)
    assert rates[12] == pytest.approx(0.1)  # half of what is left
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_recipe_sets_the_flags_that_are_not_given_and_a_run_goes_on_with_it():
    fast = main.parse(["--bit", "2", "--recipe", "fast", "--lr", "0.5"]).training
    assert (fast.epochs, fast.lr, fast.lr_schedule) == (int(FAST[2]["epochs"]), 0.5, "cosine")
    assert (fast.wd, fast.warmup) == (float(FAST[2]["wd"]), float(FAST[2]["warmup"]))
    assert main.parse([], plain(main.parse(["--bit", "2", "--recipe", "fast", "--lr", "0.5"]))).training == fast
    published = plain(main.parse(["--bit", "5"]))
    assert main.parse(["--bit", "5", "--recipe", "published"]) == main.parse([], published)
    assert main.parse(["--recipe", "fast"], published).training == main.parse(["--bit", "4", "--recipe", "fast"]).training
    assert main.parse(["--recipe", "fast"]).training.epochs == int(FAST[32]["epochs"])


def test_a_run_that_goes_on_with_its_own_recipe_keeps_its_flags_and_with_the_other_one_takes_all_of_that():
    own = main.parse(["--bit", "2", "--recipe", "fast", "--lr", "0.5"])
    assert main.parse(["--recipe", "fast"], plain(own)).training == own.training
    assert main.parse(["--recipe", "published"], plain(own)).training == main.parse(["--bit", "2"]).training
    assert main.parse(["--bit", "2", "--recipe", "fast", "-t"]).training.warmup == 0  # a smoke test has no epoch for it


def test_a_rate_of_zero_keeps_the_thresholds_as_they_are():
    groups = sgd(quantize_(build("resnet20"), 3), 0.1, 0.9, 0, threshold_lr=0.0).param_groups
    assert sorted((len(group["params"]), group["factor"]) for group in groups)[0] == (19, 0.0)


def test_a_warm_up_of_a_part_of_an_epoch_never_exceeds_the_rate():
    rate = epoch_rate(0.2, "cosine", 0, 10, warmup=0.001)
    assert max(rate(part / 100) for part in range(100)) == pytest.approx(0.2)


def test_thresholds_and_clips_get_rates_of_their_own():
    network = quantize_(build("resnet20"), 3)
    step = Step(network, sgd(network, 0.04, 0.9, 1e-4, threshold_lr=0.1, clip_lr=0.02))
    step(torch.randn(2, 3, 32, 32), torch.arange(2), 0.01)
    groups = {len(group["params"]): group["lr"] for group in step.optimizer.param_groups}
    assert groups[19] == pytest.approx(0.025)
    assert groups[20] == pytest.approx(0.005)
    assert max(groups) > 20
    assert groups[max(groups)] == 0.01


def test_the_average_is_that_of_the_weights_after_each_step():
    torch.manual_seed(0)
    network, average = nn.Linear(4, 3), nn.Linear(4, 3)
    average.load_state_dict(network.state_dict())
    step = Step(network, sgd(network, 0.1, 0.9, 0), average=average.requires_grad_(False), decay=0.75)
    expected = network.weight.detach().clone()
    for _ in range(5):
        step(torch.randn(8, 4), torch.arange(8) % 3, 0.1)
        expected = 0.75 * expected + 0.25 * network.weight.detach()
    torch.testing.assert_close(average.weight, expected)
    assert not torch.equal(average.weight, network.weight)


def test_weights_that_are_one_have_one_average():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    average = deepcopy(network).requires_grad_(False)
    before, step = network[0].weight.detach().clone(), Step(network, sgd(network, 0.1, 0.9, 0), average=average, decay=0.75)
    step(torch.randn(8, 4), torch.arange(8) % 4, 0.1)
    torch.testing.assert_close(average[0].weight, 0.75 * before + 0.25 * network[0].weight.detach())


def test_momenta_go_to_their_parameters_also_with_other_rates():
    saved = sgd(quantize_(build("resnet20"), 3), 0.1, 0.9, 0)
    places = [parameter for group in saved.param_groups for parameter in group["params"]]
    saved.state = {parameter: {"momentum_buffer": torch.full_like(parameter, number)} for number, parameter in enumerate(places)}
    names = [name for group in saved.param_groups for name in group["param_names"]]
    goes_on = sgd(quantize_(build("resnet20"), 3), 0.1, 0.9, 0, threshold_lr=0.01)
    restore_(goes_on, saved.state_dict())
    found = {name: goes_on.state[parameter]["momentum_buffer"].flatten()[0].item() for group in goes_on.param_groups
             for name, parameter in zip(group["param_names"], group["params"], strict=True)}
    assert found == {name: number for number, name in enumerate(names)}
    old = saved.state_dict()
    for group in old["param_groups"]:
        del group["param_names"]  # of earlier versions
    again = sgd(quantize_(build("resnet20"), 3), 0.1, 0.9, 0)
    restore_(again, old)
    assert all(again.state[parameter]["momentum_buffer"].flatten()[0] == number
               for number, parameter in enumerate(parameter for group in again.param_groups for parameter in group["params"]))
    old["param_groups"][0]["param_names"] = ["another"]
    with pytest.raises(ValueError, match="momenta of other parameters"):
        restore_(again, old)


def test_generators_of_earlier_versions_go_on():
    torch.manual_seed(7)
    now, old = random_state(), torch.get_rng_state()
    drawn = torch.rand(3)
    for state in (now, old):
        restore_random(state)
        assert torch.equal(torch.rand(3), drawn)


def test_a_data_set_of_ones_own_wins_over_ct_also_with_a_recipe():
    for flags in ([], ["--recipe", "fast"]):
        assert main.parse(["--dataset", "digits", "-ct", "100", *flags]).data.dataset == "digits"


def test_float_weights_of_a_float_network_are_no_other_setting(few, tmp_path):
    flags = [*RUN, "--bit", "32", "--weight-bit", "32", "--result", str(tmp_path)]
    main.main([*flags, "--epochs", "1"])
    assert main.main([*flags, "--resume"])["last"]["epoch"] == 1


def test_a_run_of_which_nothing_is_left_is_told_so(few, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.train.Trainer, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        main.main([*RUN, "--epochs", "5", "--start-epoch", "3", "--result", str(tmp_path)])
    with pytest.raises(UserError, match="--epochs 2: the run starts with epoch 3"):
        main.main([*RUN, "--resume", "--result", str(tmp_path)])


def test_smoothing_is_that_of_torch():
    torch.manual_seed(0)
    network, images, labels = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
    step = Step(network, sgd(network, 0.1, 0, 0), smoothing=0.2)
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(network(images), labels)
    torch.testing.assert_close(step.loss(images, labels)[1], expected)
    found = train_epoch(step, [(images, labels)], lambda _: 0.0)
    assert found.loss == pytest.approx(nn.CrossEntropyLoss()(network(images), labels).item())  # the log's is plain


RUN = ["--arch", TINY, "--dataset", "digits", "-b", "16", "--epochs", "2", "--lr", "0.01"]


def test_a_run_with_everything_goes_on_bit_for_bit(few, tmp_path, monkeypatch):
    main.main([*RUN, "--bit", "32", "--label-smoothing", "0.1", "--ema", "0.5", "--result", str(tmp_path)])
    start = str(tmp_path / f"{TINY_RUN}_32bit" / BEST)
    flags = [*RUN, "--bit", "3", "--init", start, "--teacher", start, "--ema", "0.5", "--nesterov", "--warmup", "0.5",
             "--threshold-lr", "0.02", "--clip-lr", "0.005"]
    main.main([*flags, "--result", str(tmp_path / "whole")])
    save = RunDirectory.save

    def killed(run: RunDirectory, contents: dict, history: list, is_best: bool) -> None:
        save(run, contents, history, is_best)
        if len(history) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        main.main([*flags, "--result", str(tmp_path / "broken")])
    monkeypatch.setattr(RunDirectory, "save", save)
    main.main(["--arch", TINY, "--dataset", "digits", "--bit", "3", "--resume", "--result", str(tmp_path / "broken")])
    whole, broken = (read_checkpoint(tmp_path / name / f"{TINY_RUN}_3bit" / LAST) for name in ("whole", "broken"))
    assert torch.equal(whole["rng"]["cpu"], broken["rng"]["cpu"])
    for part in ("state_dict", "trained"):
        assert all(torch.equal(tensor, broken[part][name]) for name, tensor in whole[part].items())
    name = "body.0.conv.weight"
    assert not torch.equal(whole["state_dict"][name], whole["trained"][name])


def test_a_teacher_of_other_pixels_is_refused(few, tmp_path):
    flags = [*RUN, "--epochs", "1", "--result", str(tmp_path)]
    other = ["--mean", "0.4", "0.4", "0.4", "--std", "0.2", "0.2", "0.2", "--result", str(tmp_path / "teacher")]
    teacher = main.main([*flags, *other])["directory"] / BEST
    with pytest.raises(UserError, match=r"trained on pixels with --mean and --std \(\(0.4, 0.4, 0.4\)"):
        main.main([*flags, "--overwrite", "--teacher", str(teacher)])


def test_a_teacher_that_the_run_would_replace_is_refused(few, tmp_path):
    flags = [*RUN, "--epochs", "1", "--result", str(tmp_path)]
    own = main.main(flags)["directory"] / BEST
    before = own.read_bytes()
    for how in ("--overwrite", "--resume"):
        with pytest.raises(UserError, match=rf"--teacher {own}: the run would delete this file"):
            main.main([*flags, how, "--teacher", str(own)])
    assert own.read_bytes() == before


def test_a_teacher_may_be_another_network_of_a_users_file(few, tmp_path):
    (tmp_path / "mine.py").write_text("""from torch import nn

def wide(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def narrow(num_classes):
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes))
""")
    flags = [*RUN[2:], "--epochs", "1", "--result", str(tmp_path)]
    teacher = str(main.main(["--arch", f"{tmp_path}/mine.py:wide", *flags])["directory"] / BEST)
    flags += ["--arch", f"{tmp_path}/mine.py:narrow", "--teacher", teacher]
    with pytest.raises(UserError, match="name it with --teacher-arch"):
        main.main(flags)
    taught = main.main([*flags, "--overwrite", "--teacher-arch", f"{tmp_path}/mine.py:wide"])
    assert taught["last"]["epoch"] == 0


@pytest.mark.parametrize(("flags", "named"), [
    (["--teacher", "x.pth.tar", "--label-smoothing", "0.1"], "--label-smoothing 0.1"),
    (["--nesterov", "--momentum", "0"], "--nesterov"),
    (["--warmup", "2"], "--warmup 2"),
    (["--lr", "0", "--threshold-lr", "0.1"], "pass a small --lr"),
    (["--teacher-arch", "vgg11"], "is of a --teacher FILE"),
    (["--teacher", "x.pth.tar"], "x.pth.tar does not exist")])
def test_flags_that_exclude_each_other_are_refused(few, tmp_path, flags, named):
    with pytest.raises(UserError, match=named):
        main.main([*RUN, *flags, "--result", str(tmp_path)])
