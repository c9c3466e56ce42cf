"""Killed and resumed equals unbroken, bit for bit, at any moment: in a step, within a file, between two files."""

import json
import random
import time
from pathlib import Path

import pytest
from helpers import TINY, TINY_RUN, Forks, same, timeless

from utils.checkpoints.checkpoint import BEST, LAST, read_checkpoint

ROOT = Path(__file__).parent.parent
COMMON = ["--arch", TINY, "-b", "16"]
TUNE = [*COMMON, "--bit", "2", "--calib", "16", "--check-images", "16", "-n", "2"]
MIXED = f"{Path(__file__).parent / 'mixed.py'}:mixed"  # a network of the user's, with concatenation and max-pooling
OWN = ["--arch", MIXED, *TUNE[2:]]
RUNS = {  # name -> script, arguments, run directory
    "main": ("main", [*COMMON, "--bit", "3", "--epochs", "2", "--lr", "0.02", "--lr-schedule", "cosine"], f"{TINY_RUN}_3bit"),
    "layerwise": ("snn_ft", [*TUNE, "--lr", "0.1", "--force"], f"{TINY_RUN}_2bit_ft"),
    "layerwise that reverts": ("snn_ft", [*TUNE, "--lr", "0.05", "-u", "--calibrate", "16"], f"{TINY_RUN}_2bit_ft_unsigned"),
    "online": ("snn_ft", [*TUNE, "--lr", "0.05", "--online", "--amp", "--force", "--steps", "2"], f"{TINY_RUN}_2bit_ft_2steps"),
    "global": ("snn_ft", [*TUNE, "--method", "global", "--lr", "1e-3"], f"{TINY_RUN}_2bit_ft_global"),
    "through time": ("snn_ft", [*TUNE, "--method", "through-time", "-u", "--amp"], f"{TINY_RUN}_2bit_ft_through-time_unsigned"),
    "layerwise, own": ("snn_ft", [*OWN, "--lr", "0.1", "--force"], "mixed-mixed_2bit_ft"),
    "global, own": ("snn_ft", [*OWN, "--method", "global", "--lr", "1e-3"], "mixed-mixed_2bit_ft_global"),
}
# Three steps an epoch (tuning: one). Files are renamed in the order config, checkpoint, log | best, checkpoint, log | ...
MOMENTS = {
    "main": [("step", 5), ("write", 3), ("renamed", 1), ("renamed", 4), ("rename", 8)],
    "layerwise": [("step", 3)],
    "global": [("step", 2)],
    "through time": [("step", 2)],
    "layerwise, own": [("step", 3)],
    "global, own": [("step", 2)],
}


def attempt(forks: Forks, name: str, data: Path, result: Path, moment: tuple | None = None) -> int:
    """Start a run, or go on with it if it has a checkpoint: nothing is computed before the first one. Return its exit status."""
    script, argv, directory = RUNS[name]
    argv = [*argv, "--data", str(data), "--result", str(result)]
    network = "mixed-mixed_2bit" if directory.startswith("mixed") else f"{TINY_RUN}_2bit"
    start = ["--init", str(data / network / BEST)] if script == "snn_ft" else []
    how = ["--resume"] if (result / directory / LAST).is_file() else start
    return forks.run(script, [*argv, *how], f"{result}.log", moment)


@pytest.fixture(scope="module")
def start(tiny, forks) -> Path:
    """Train the networks that tuning starts from; return the data's directory, where they are."""
    argv = ["-b", "16", "--bit", "2", "--epochs", "1", "--lr", "0.02", "--data", str(tiny), "--result", str(tiny)]
    for arch in (TINY, MIXED):
        assert forks.run("main", ["--arch", arch, *argv], tiny / "log") == 0, (tiny / "log").read_text()
    return tiny


def assert_same_runs(whole: Path, broken: Path) -> None:
    """Compare all files of two runs but for paths and seconds."""
    assert sorted(file.name for file in whole.iterdir()) == sorted(file.name for file in broken.iterdir())
    for name in (LAST, BEST):
        a, b = read_checkpoint(whole / name), read_checkpoint(broken / name)
        assert a.keys() == b.keys()
        for key in a.keys() - {"args", "history", "revision"}:
            ours, theirs = ({k: v for k, v in x[key].items() if k != "seconds"} if key == "finetune" else x[key] for x in (a, b))
            assert same(ours, theirs), (name, key)
        assert timeless(a["history"]) == timeless(b["history"])
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (whole, broken)]
    assert timeless(logs[0]) == timeless(logs[1])
    assert len(logs[0]) > 1


def assert_survives(forks: Forks, name: str, moments: list[tuple], start: Path, where: Path) -> None:
    """Kill a run at each of the moments, resume it, compare it with an unbroken one."""
    directory = RUNS[name][2]
    assert attempt(forks, name, start, where / "whole") == 0, (where / "whole.log").read_text()
    for number, moment in enumerate(moments):
        broken = where / str(number)
        assert attempt(forks, name, start, broken, moment) < 0, moment  # else no such moment came
        assert attempt(forks, name, start, broken) == 0, (moment, (where / f"{number}.log").read_text())
        assert_same_runs(where / "whole" / directory, broken / directory)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_survives_kills(name, start, forks, tmp_path):
    assert_survives(forks, name, MOMENTS[name], start, tmp_path)


def count_moments(forks: Forks, name: str, start: Path, where: Path) -> list[tuple]:
    """Return all moments of a run; the last of each kind is found by bisection."""
    found = []
    for what in ("step", "write", "rename", "renamed"):
        low, high = 0, 128  # one that comes, one that does not
        while high - low > 1:
            middle = (low + high) // 2
            code = attempt(forks, name, start, where / f"{what}{middle}", (what, middle))
            low, high = (middle, high) if code < 0 else (low, middle)
        found += [(what, number) for number in range(1, low + 1)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_survives_a_kill_at_any_moment(name, start, forks, tmp_path):
    """All moments of main.py and of global tuning; of layer-wise tuning, which has hundreds, 12 drawn with a fixed seed."""
    (tmp_path / "count").mkdir()
    moments = count_moments(forks, name, start, tmp_path / "count")
    assert {what for what, _ in moments} == {"step", "write", "rename", "renamed"}
    assert_survives(forks, name, moments if len(moments) < 40 else random.Random(0).sample(moments, 12), start, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["main", "layerwise"])
def test_a_run_survives_being_killed_again_and_again(name, start, forks, tmp_path):
    """It is killed by the clock, whatever it is doing, until it gets through."""
    directory = tmp_path / "broken" / RUNS[name][2]
    began = time.monotonic()
    assert attempt(forks, name, start, tmp_path / "whole") == 0
    length = time.monotonic() - began
    draw, kills, code = random.Random(1), 0, -1
    while code < 0:
        moment = ("alarm", draw.uniform(0.1, 0.4) * length) if kills < 20 else None
        code = attempt(forks, name, start, tmp_path / "broken", moment)
        kills += code < 0
    assert code == 0, (tmp_path / "broken.log").read_text()
    assert kills > 2
    assert_same_runs(tmp_path / "whole" / RUNS[name][2], directory)
