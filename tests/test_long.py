"""A long run holds on to nothing: neither memory nor open files."""

import gc
import os
from pathlib import Path

import pytest
from helpers import resident

import main
from utils.checkpoints.checkpoint import LAST, read_checkpoint
from utils.config import RunSettings
from utils.training import train

EPOCHS = 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_200_short_epochs_take_no_more_memory_than_20(tmp_path, monkeypatch):
    """Two batches of digits an epoch, evaluated, saved; the second half of the run against its second tenth."""
    monkeypatch.setattr(RunSettings, "limit", 2)
    memory, files, objects = [], [], []
    train_one = train.train_one

    def measured(*arguments):
        line = train_one(*arguments)
        gc.collect()
        memory.append(resident())
        files.append(len(os.listdir("/proc/self/fd")))
        objects.append(len(gc.get_objects()))
        return line

    monkeypatch.setattr(train, "train_one", measured)
    result = main.main(["-a", "resnet20", "--dataset", "digits", "--bit", "3", "-b", "16", "--epochs", str(EPOCHS), "--lr", "0.01",
                        "--result", str(tmp_path)])
    assert len(memory) == EPOCHS
    early, late = slice(20, 40), slice(EPOCHS // 2, EPOCHS)
    assert max(memory[late]) - max(memory[early]) < 16  # MB; a kept checkpoint takes 2, a kept epoch's graph more
    assert max(files[late]) == max(files[early])
    assert max(objects[late]) - max(objects[early]) < 5 * EPOCHS  # the log: one dictionary an epoch
    history = read_checkpoint(result["directory"] / LAST)["history"]
    assert [line["epoch"] for line in history] == list(range(EPOCHS))
