"""Runs of the scripts on networks of one's own: what they repeat after an interruption, and refuse before they begin."""

from pathlib import Path

import pytest
import torch

import main
import snn
import snn_ft
from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint, save_checkpoint
from utils.checkpoints.rundir import RunDirectory
from utils.data.splits import Data
from utils.errors import UserError

NETS = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes, norm=nn.Identity, tied=False):
        super().__init__()
        self.head = nn.Linear(6, num_classes)
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.drop, self.last = norm(6), nn.Dropout(0.3), nn.Linear(6, 6)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        x = F.relu(self.norm(self.a(F.relu(self.stem(x)))))
        x = self.drop(F.relu(self.b(x)).mean((2, 3)))
        return self.head(F.relu(self.last(x)))


def plain(num_classes):
    return Net(num_classes, nn.BatchNorm2d)


def fixed(num_classes):
    return Net(num_classes, lambda channels: nn.BatchNorm2d(channels, affine=False))


def tied(num_classes):
    return Net(num_classes, nn.BatchNorm2d, tied=True)


class Deep(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.head = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x.unsqueeze(1))).squeeze(2))).mean((2, 3)))
"""


@pytest.fixture
def nets(tmp_path, few) -> Path:
    """Return a file with networks."""
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def flags(nets: Path, name: str, result: str, *more: str) -> list[str]:
    return ["--arch", f"{nets}:{name}", "--dataset", "digits", "-b", "16", "--result", str(nets.parent / result), *more]


def killed_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die after so many epochs."""
    save = RunDirectory.save

    def dying(run: RunDirectory, contents: dict, history: list, is_best: bool) -> None:
        save(run, contents, history, is_best)
        if len(history) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save", dying)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(directory / LAST)["state_dict"]


@pytest.mark.parametrize("through_time", [False, True])
def test_dropout_goes_on_bit_for_bit(nets, monkeypatch, through_time):
    def run(result: str, *more: str) -> Path:
        if not through_time:
            return main.main(flags(nets, "plain", result, "--epochs", "2", *more))["directory"]
        start = str(nets.parent / "start" / "nets-plain_3bit" / BEST)
        how = ("--bit", "3", "--init", start, "--method", "through-time", "--epochs", "2", "--check-images", "16")
        return snn_ft.main(flags(nets, "plain", result, *how, *more))["directory"]

    main.main(flags(nets, "plain", "start", "--bit", "3", "--epochs", "1"))
    whole = run("whole")
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    torch.manual_seed(5)  # whatever was drawn before
    broken = run("broken", "--resume")
    assert all(torch.equal(value, weights(broken)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("damage", [{"rng": {"cpu": torch.zeros(7, dtype=torch.uint8)}}, {"optimizer": {}},
                                    {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}}])
def test_a_tuning_with_a_damaged_state_is_not_resumed(nets, damage):
    main.main(flags(nets, "plain", "r", "--bit", "3", "--epochs", "1"))
    how = flags(nets, "plain", "r", "--bit", "3", "--method", "global", "--epochs", "1", "--check-images", "16")
    file = snn_ft.main(how)["directory"] / LAST
    save_checkpoint(file, read_checkpoint(file) | damage)
    with pytest.raises(UserError, match=r"cannot be resumed.*--overwrite"):
        snn_ft.main([*how, "--resume"])


@pytest.mark.parametrize(("name", "method", "named"), [
    ("fixed", "through-time", "norm has no scale and shift.*--norm frozen"),
    ("tied", "layerwise", "b is part of .*--method global")])
def test_a_network_that_a_method_cannot_tune_is_refused_before_anything_is_written(nets, name, method, named):
    main.main(flags(nets, name, "r", "--bit", "2", "--weight-bit", "32", "--epochs", "1"))
    with pytest.raises(UserError, match=named) as caught:
        snn_ft.main(flags(nets, name, "r", "--bit", "2", "--method", method))
    assert "lower --lr" not in str(caught.value)
    assert len(list((nets.parent / "r").glob("*/"))) == 1


def test_a_network_tuned_through_time_is_no_start_for_a_training(nets):
    main.main(flags(nets, "plain", "r", "--bit", "2", "--epochs", "1"))
    how = ("--method", "through-time", "--epochs", "1", "--check-images", "16")
    tuned = snn_ft.main(flags(nets, "plain", "r", "--bit", "2", *how))["directory"]
    before = weights(nets.parent / "r" / "nets-plain_2bit")
    with pytest.raises(UserError, match="BN of each time step, with which an ANN cannot train"):
        main.main(flags(nets, "plain", "r", "--bit", "2", "--init", str(tuned / BEST), "--overwrite"))
    assert weights(nets.parent / "r" / "nets-plain_2bit").keys() == before.keys()


def test_fitting_sees_images_of_the_whole_training_set(nets, monkeypatch):
    """Files of a folder are sorted by class."""
    start = main.main(flags(nets, "plain", "r", "--epochs", "1"))["directory"] / BEST
    seen, fit = [], snn.loading.fit_
    monkeypatch.setattr(snn.loading, "fit_", lambda network, images: (seen.append(images), fit(network, images))[1])
    argv = flags(nets, "plain", "r", "--bit", "3", "--init", str(start), "--fit", "12", "-e")
    snn.main(argv)
    every = torch.cat([images for images, _ in Data(snn.parse(argv).data, torch.device("cpu")).batches(train=True)])
    assert torch.equal(seen[0], every[torch.linspace(0, len(every) - 1, 12).long()])


def test_a_head_may_stand_anywhere_in_a_file(nets):
    """A linear layer of 6 outputs comes after it."""
    trained = main.main(flags(nets, "plain", "r", "--epochs", "1"))["directory"] / BEST
    torch.save(read_checkpoint(trained)["state_dict"], nets.parent / "float.pth")
    assert main.main(flags(nets, "plain", "s", "--epochs", "1", "--init", str(nets.parent / "float.pth")))["last"]["epoch"] == 0


def test_weights_of_five_axes_are_placed(nets):
    assert main.main(flags(nets, "Deep", "r", "--bit", "3", "--epochs", "1"))["last"]["epoch"] == 0
