"""Several processes: the same scores, the same weights, no hang."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import picture, same
from worker import Work

from utils.config import DataSettings
from utils.data.splits import Data
from utils.distributed.processes import Place
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "tests" / "worker.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return 41 classes with one small image each, the same in train/ and val/."""
    base = tmp_path_factory.mktemp("imagenet")
    for label in range(41):
        folder = base / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        picture(240 + label, 300 - label, seed=label).save(folder / f"{label}.JPEG", quality=90)
    shutil.copytree(base / "train", base / "val")
    return base


def launch(processes: int, *command: object, module: str = "run", timeout: int = 300) -> subprocess.CompletedProcess:
    """Run a script in several processes on this machine."""
    launcher = [sys.executable, "-m", f"torch.distributed.{module}", "--standalone", f"--nproc_per_node={processes}"]
    line = [*launcher, *map(str, command)]
    return subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False)


def work(tasks: str, processes: int, root: Path, out: Path) -> list[dict]:
    """Return what the processes saved: for each task its result."""
    done = launch(processes, WORKER, tasks, root, out)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(root, tmp_path_factory) -> list[dict]:
    """Return the results of two processes, started once for all tests: starting takes longer than their work."""
    return work("train,tune", 2, root, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_validation_is_the_same_on_any_number_of_processes(root, tmp_path, processes):
    pytest.importorskip("nvidia.dali")
    alone = Work(root, Place(), tmp_path).validate()
    assert alone.keys() == {"dali", "torchvision"}
    for result in work("validate", processes, root, tmp_path):
        for decoder, expected in alone.items():
            scores = result["validate"][decoder]
            assert scores["count"] == expected["count"] == 41
            assert (scores["top1"], scores["top5"]) == (expected["top1"], expected["top5"])
            assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_two_processes_train_as_one_with_twice_the_batch_does(root, two, tmp_path):
    """BN is frozen, since each process has its own batch statistics. One process with two batches to a step agrees too."""
    first, second = (result["train"] for result in two)
    alone = Work(root, Place(), tmp_path)
    one, accumulated = alone.train(), alone.accumulate()
    assert same(first["state"], second["state"])
    for other in (first, accumulated):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(other["state"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_tuning_processes_stay_bit_identical(two):
    first, second = (result["tune"] for result in two)
    assert same(first["layerwise"], second["layerwise"])
    assert same(first["whole"], second["whole"])
    assert not same(first["layerwise"], first["whole"])
    assert first["accuracies"] == second["accuracies"]


def no_val(place: Path) -> str:
    shutil.rmtree(place / "val")
    return "val does not exist"


def empty_class(place: Path) -> str:
    (place / "train" / "n00000003" / "3.JPEG").unlink()
    return "n00000003 has no .JPEG"


def corrupt(place: Path) -> str:
    (place / "train" / "n00000003" / "3.JPEG").write_bytes(b"no picture")
    return "3.JPEG cannot be decoded"


def too_many_processes(place: Path) -> str:
    for label in range(1, 41):
        for split in ("train", "val"):
            shutil.rmtree(place / split / f"n{label:08d}")
    return "1 images are too few for 2 processes"


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [no_val, empty_class, corrupt, too_many_processes])
def test_mistakes_end_all_processes(root, tmp_path, mistake):
    place = tmp_path / "images"
    shutil.copytree(root, place)
    expected = mistake(place)
    done = launch(2, ROOT / "dali_main.py", "--scratch", "-a", "alexnet", "--bit", "4", "-b", "4", "-j", "1", "--epochs", "1",
                  "--result", tmp_path / "result", place)
    assert done.returncode != 0
    assert f"error: {place}" in done.stderr or "error: 1 images" in done.stderr
    assert expected in done.stderr.split("Root Cause")[1]
    assert done.stderr.count("Traceback") == 1  # torchrun's own
    for file in tmp_path.glob("result/*/checkpoint.pth.tar"):  # the start of a run that found the damage in its first epoch
        assert mistake is corrupt
        assert torch.load(file, weights_only=True)["history"] == []


def test_cifar_runs_in_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="2 processes: digits runs in one"):
        Data(DataSettings("digits"), torch.device("cpu"), Place.of_environment())


PUBLISHED = """\
dali_main.py -a alexnet -b 4 --bit 4 --workers 1 --lr=0.025 --epochs 1 --dali_cpu --init {start}
snn.py -a alexnet -b 4 -e -u --bit 4 --init result/alexnet_4bit/model_best.pth.tar --workers 1 --dali_cpu
snn_ft.py -a alexnet -b 4 --bit 4 --init result/alexnet_4bit/model_best.pth.tar --workers 1 --dali_cpu --calib 8 --check-images 8
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["launch", "run"])
def test_the_published_command_lines_run(tmp_path, find, monkeypatch, module):
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("nvidia.dali")
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), "alexnet.pth")
    for line in PUBLISHED.format(start="alexnet.pth").splitlines():
        script, *flags = line.split()
        done = launch(2, ROOT / script, *flags, find("data/imagenet-sample"), module=module, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "test" in done.stdout
    assert (tmp_path / "result" / "alexnet_4bit_ft" / "model_best.pth.tar").exists()


def final_weights(result: Path) -> dict:
    return torch.load(result / "alexnet_4bit" / "checkpoint.pth.tar", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_torchrun_goes_on_after_a_worker_was_killed(root, tmp_path):
    """With --max-restarts and no other flag; the final weights are those of an unbroken run."""
    flags = ["-a", "alexnet", "--bit", "4", "--scratch", "-b", "4", "-j", "1", "--epochs", "3", "--lr", "0.01"]
    done = launch(2, ROOT / "dali_main.py", *flags, "--result", tmp_path / "whole", root, timeout=600)
    assert done.returncode == 0, done.stderr
    # Without --standalone, which would make a new store for each attempt.
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port=29534", "--nproc_per_node=2", "--max-restarts=3",
               ROOT / "dali_main.py", *flags, "--result", tmp_path / "broken", root]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=log, stderr=log)
        log_file = tmp_path / "broken" / "alexnet_4bit" / "log.jsonl"
        while not log_file.exists() or not log_file.read_text():
            time.sleep(0.2)
            assert process.poll() is None, (tmp_path / "log").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait(600) == 0, (tmp_path / "log").read_text()
    assert "started again: going on with" in (tmp_path / "log").read_text()
    assert same(final_weights(tmp_path / "whole"), final_weights(tmp_path / "broken"))
    lines = [(tmp_path / name / "alexnet_4bit" / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    assert len(lines[0]) == len(lines[1]) == 3


@pytest.mark.slow
def test_two_processes_overfit_the_images(find, tmp_path):
    """41 photographs, random crops and flips; BN over the 8 images of a process."""
    flags = ["-a", "alexnet", "--bit", "32", "-b", "8", "-j", "1", "--epochs", "100", "--lr", "0.002", "--lr-schedule", "cosine"]
    done = launch(2, ROOT / "dali_main.py", *flags, "--result", tmp_path, find("data/imagenet-sample"), timeout=2400)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split("train loss ")[1].split(",")[0]) for line in done.stdout.splitlines() if "train loss" in line]
    assert min(losses) < losses[0] / 10


NODE = """\
ip netns exec {name} {python} -m torch.distributed.run --nnodes=2 --nproc_per_node=2 --node_rank={rank} \
--master_addr=10.231.77.1 --master_port=29533 {worker} shard {root} {out}
"""


@pytest.fixture
def nodes():
    """Two network namespaces joined by a pair of veth devices: two hosts on one machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"fastsnn{os.getpid()}{side}" for side in "ab"]
    setup = [f"ip netns add {names[0]}", f"ip netns add {names[1]}",
             f"ip link add veth0 netns {names[0]} type veth peer name veth0 netns {names[1]}"]
    for number, name in enumerate(names, start=1):
        setup += [f"ip -n {name} addr add 10.231.77.{number}/24 dev veth0", f"ip -n {name} link set veth0 up",
                  f"ip -n {name} link set lo up"]
    try:
        for line in setup:
            done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {line}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_nodes_read_disjoint_shards_that_cover_the_set(nodes, root, tmp_path):
    running = []
    for rank, name in enumerate(nodes):
        line = NODE.format(name=name, python=sys.executable, rank=rank, worker=WORKER, root=root, out=tmp_path)
        environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "veth0"}
        running.append(subprocess.Popen(line.split(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["shard"] for rank in range(4)]
    assert [result["fetched"] for result in results] == ["by local rank 0"] * 4
    shards = [result["paths"] for result in results]
    paths = [path for shard in shards for path in shard]
    assert len(paths) == len(set(paths)) == 41
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
