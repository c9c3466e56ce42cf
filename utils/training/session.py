"""A tuning from its settings to its result: the networks and data of all methods, and what is saved."""

import time
from typing import Any

from models import Network
from snn_layers import latency, norm_steps

from ..checkpoints.checkpoint import network_state, restore_network
from ..checkpoints.resume import check_same_neurons, random_state, restore_random, same_frozen, taking_over
from ..checkpoints.rundir import RunDirectory, plain
from ..data.splits import Data
from ..errors import UserError
from ..settings import Settings
from . import loading
from .engine import evaluate


class Session:
    """A spiking network to tune, the ANN that it learns from, their images, and the progress.

    Attributes:
        batches, check, test_batches: images to learn from, images that decide meanwhile, and the test set.
        calibration: images to calibrate on; all training images where `batches` has too few.
        history: the log, a line a unit or epoch.
        summary: results so far; accuracies in percent on the test set.
        optimizer_state: global, through time: of the optimizer.
        progress: layerwise: a `UnitProgress` of the unit that is tuned, as plain values; None between units.

    Raises:
        UserError: the flags ask for other neurons, or name another network, than those of the run that goes on.
    """

    def __init__(self, settings: Settings, data: Data, run: RunDirectory):
        self.settings, self.run, before, how = settings, run, run.contents, settings.tuning
        if before:
            check_same_neurons(settings, before, run.path)
        start, self.ann, _ = loading.load_quantized(settings, data, learns=True)
        if how.method != "through-time" and norm_steps(start) is not None:
            raise UserError(f"--init {loading.init_path(settings.run)}: the network has BN of each time step; only --method "
                            "through-time can go on with it")
        tuned = start
        if before:
            tuned = data.placed(restore_network(before, run.file, settings.run.arch, self.ann.bit, settings.data.dataset))
            same_frozen(tuned, start, run.path, how.method)
        self.snn = data.described(loading.spiking(settings.spiking, tuned))
        self.batches = data.batches(train=True, augment=True, limit=how.tune_images or None)
        few = 0 < (how.tune_images or 0) < settings.spiking.calibrate
        self.calibration = data.batches(train=True, augment=True) if few else self.batches
        self.check, self.test_batches = data.batches(train=True, limit=how.check_images), data.batches(train=False)
        self.history: list[dict[str, Any]] = before.get("history", [])
        self.summary: dict[str, Any] = before.get("finetune") or {}
        self.optimizer_state, self.progress = before.get("optimizer"), before.get("progress")

    def score(self, network: Network, name: str) -> float:
        """Return a network's accuracy on the test set in percent; in float32, also after a tuning in bfloat16."""
        runner = network if network is self.ann else loading.fast(network, self.test_batches, self.settings)
        return evaluate(runner, self.test_batches, limit=self.settings.run.limit, name=name).top1

    def prepare(self) -> None:
        """Measure the networks, calibrate if asked for, and save that, unless a run goes on."""
        snn, count = self.snn, self.settings.spiking.calibrate
        if not self.run.contents:
            self.summary = {"neuron": snn.neuron, "delay": snn.delay, "steps": snn.time_steps, "start": snn.start,
                            "ann": self.score(self.ann, "ANN"), "before": self.score(snn, "SNN"), "seconds": 0.0}
        print(f"test set: quantized ANN {self.summary['ann']:.2f} %, {snn.neuron} SNN before tuning "
              f"{self.summary['before']:.2f} %", flush=True)
        if count and not self.run.contents:
            self.summary["seconds"] += loading.calibrate(count, snn, self.ann, self.calibration)
            self.summary["calibrated"] = self.score(snn, "calibrated SNN")
            print(f"test set: calibrated SNN {self.summary['calibrated']:.2f} %", flush=True)
        self.spent, self.began = self.summary.get("seconds", 0.0), time.monotonic()
        if not self.run.contents:
            self._write(is_best=False)  # so that a run can be resumed from its first epoch
        elif "rng" in self.run.contents:  # earlier versions did not save it
            with taking_over(self.run.file, "--overwrite"):
                restore_random(self.run.contents["rng"])

    def save(self) -> None:
        """Save the tuning so far."""
        self.summary["seconds"] = round(self.spent + time.monotonic() - self.began, 1)
        self._write(is_best=False)

    def finish(self) -> dict[str, Any]:
        """Measure and save the result; return the accuracies on the test set, the latency and the directory."""
        summary = self.summary
        summary["after"] = self.score(self.snn, "SNN")
        self._write(is_best=True)
        lost = summary["after"] - summary["ann"]
        print(f"{self.run.path}: test set {summary['before']:.2f} -> {summary['after']:.2f} % ({lost:+.2f} to the ANN) "
              f"in {summary['seconds']:.0f} s, latency {latency(self.snn)} steps")
        return summary | {"directory": self.run.path, "latency": latency(self.snn)}

    def _write(self, is_best: bool) -> None:
        contents = network_state(self.snn) | {"finetune": self.summary, "args": plain(self.settings),
                                              "optimizer": self.optimizer_state, "progress": self.progress,
                                              "rng": random_state()}
        self.run.save(contents, self.history, is_best)
