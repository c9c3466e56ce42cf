"""Networks that go into git without what only a resumed run needs."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from utils.checkpoints.checkpoint import load_network, network_state, read_checkpoint, save_checkpoint
from utils.checkpoints.light import OF_A_RUN, lighten, origin
from utils.files import sha256


def test_a_lightened_network_is_the_same_and_known_by_its_old_checksum(quantized, tmp_path):
    path = tmp_path / "network.pth.tar"
    state = {"state": {0: {"momentum_buffer": torch.zeros(1000)}}}
    run = {"args": {"lr": 0.1}, "history": [], "optimizer": state, "rng": torch.zeros(9), "trained": quantized.state_dict()}
    save_checkpoint(path, network_state(quantized) | run)
    before, first, size = read_checkpoint(path), sha256(path), path.stat().st_size
    assert origin(path) == first
    lighten(path)
    after = read_checkpoint(path)
    assert path.stat().st_size < size - 4000
    assert after.keys() == before.keys() - {"optimizer", "rng", "trained"} | {"sha256"}
    assert all(torch.equal(tensor, after["state_dict"][name]) for name, tensor in before["state_dict"].items())
    assert load_network(path).bit == 2
    assert origin(path) == first != sha256(path)
    again = path.read_bytes()
    lighten(path)  # nothing is left to take out
    assert path.read_bytes() == again


def test_a_missing_file_is_told_in_a_line(tmp_path):
    command = [sys.executable, "-m", "utils.checkpoints.light", str(tmp_path / "none.pth.tar")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.splitlines()[-1]) == (2, f"light.py: error: checkpoint {tmp_path / 'none.pth.tar'} does "
                                                                    "not exist: train it first, or correct the path")


def test_networks_in_git_carry_no_optimizer_state():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "result/*.pth.tar"], capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]
    if not files:
        pytest.skip("no checkout")
    kept = {str(file): [name for name in OF_A_RUN if read_checkpoint(file).get(name) is not None] for file in files}
    assert not any(kept.values()), kept
