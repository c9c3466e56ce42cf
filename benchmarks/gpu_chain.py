"""The chains of benchmarks/gpu.py: from float to 2 bits, as many epochs as there is time for, converted and tuned."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import main as training
import snn
import snn_ft

SHARES = {32: 0.3, 4: 0.2, 3: 0.2, 2: 0.3}  # of the time for training
EPOCHS = 300  # of the published trainings
PUBLISHED = {"resnet20": {32: 92.96, 4: 92.45, 3: 92.49, 2: 90.96}, "resnet18": {}}
SPIKING = 0.15  # of all the time, for conversion and tuning
GPU = torch.cuda.is_available()


def chain(arch: str, data: Path, seconds: float, result: Path) -> Iterator[dict[str, Any]]:
    """Train, convert and tune, with run directories in `result`; a row for each network."""
    images = ["--data", str(data)] if GPU else ["--dataset", "digits", "-t", "-b", "16"]
    common = ["--arch", arch, *images, "--result", str(result), "--overwrite"]
    end = time.monotonic() + seconds
    pace = {bit: epoch_seconds([*common, "--bit", str(bit)]) for bit in (32, 3)}
    yield {"epoch_seconds": pace}
    left = (end - time.monotonic()) * (1 - SPIKING)
    trained: dict[int, Path] = {}
    start: list[str] = []
    for bit, share in SHARES.items():
        warm_up, epoch = pace[32 if bit == 32 else 3]
        epochs = max(1, min(EPOCHS, int((left * share - warm_up) / epoch)))
        wd = {32: "5e-4", 2: "3e-5"}.get(bit, "1e-4")
        flags = ["--bit", str(bit), "--epochs", str(epochs), "--lr", "0.1" if bit == 32 else "0.04", "--wd", wd, *FAST]
        began = time.monotonic()
        found = training.main([*common, *flags, *start])
        trained[bit] = found["directory"] / "model_best.pth.tar"
        start = ["--init", str(trained[bit])]
        best, last = (found[which]["test_top1"] for which in ("best", "last"))
        yield {"arch": arch, "bits": bit, "epochs": found["last"]["epoch"] + 1, "best": best, "last": last,
               "published": PUBLISHED[arch].get(bit), "seconds": round(time.monotonic() - began, 1)}
    for bit in (4, 3, 2) if GPU else (2,):  # on a CPU many steps take minutes
        yield from spiking([*common, "--init", str(trained[bit])], bit)


FAST = ["--lr-schedule", "cosine", *(["--amp", "--compile"] if GPU else [])]


def epoch_seconds(flags: list[str]) -> tuple[float, float]:
    """Return (seconds by which a run's first epoch is longer than a later one, seconds of a later epoch)."""
    found = training.main([*flags, "--epochs", "3", *FAST])
    log = [json.loads(line) for line in (found["directory"] / "log.jsonl").read_text().splitlines()]
    return log[0]["seconds"] - log[-1]["seconds"], log[-1]["seconds"]


def spiking(common: list[str], bit: int) -> Iterator[dict[str, Any]]:
    """Convert and tune the network of a bit-width."""
    without = [flag for flag in common if flag != "--overwrite"]
    for neuron in ([], ["-u"]):
        found = snn.main([*without, "--bit", str(bit), "-e", *neuron])
        yield {"bits": bit, "neuron": "unsigned" if neuron else "signed", "ann": found["ann"].top1, "converted": found["snn"].top1}
    flags = ["--method", "global", "--teacher", "--calib", "20000", "--calibrate", "512"]
    found = snn_ft.main([*common, "--bit", str(bit), *flags])
    yield {"bits": bit, "neuron": "signed", "ann": found["ann"], "tuned": found["after"], "seconds": found["seconds"]}
