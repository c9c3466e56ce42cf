"""A network leaves as a file, with what is known of it: --export."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from models import Network
from snn_layers import latency
from snn_layers.export import check_file, network_file

from ..checkpoints.checkpoint import revision
from ..config import RunSettings
from ..data.splits import Data
from ..errors import UserError
from ..files import replacing
from .metrics import Scores


def check_export(run: RunSettings) -> None:
    """Raise UserError if nothing can be written to the file of --export: of another kind, without its package, in no directory."""
    if run.export is None:
        return
    try:
        check_file(run.export)
    except (ValueError, ModuleNotFoundError) as error:
        raise UserError(f"--export {error}") from error
    if not run.export.parent.is_dir():
        raise UserError(f"--export {run.export}: {run.export.parent} is no directory; make it first")


def export(network: Network, path: Path, data: Data, scores: Scores, train: bool = False) -> None:
    """Write a quantized or a spiking network to a file, whole or not at all; one process of several does it.

    Args:
        scores: its own, on the test set or, with `train`, on training images.

    Raises:
        UserError: it cannot leave, or the file cannot be written.
    """
    if data.place.rank > 0:
        return
    size = tuple(data.batches(train=train).first(1).shape[1:])
    try:
        contents = network_file(deepcopy(network).cpu().float(), path, size, description(network, data, scores, train))
    except ValueError as error:
        raise UserError(f"--export {path}: {error}") from error
    with replacing(path) as file:
        file.write(contents)
    print(f"{path}: {len(contents) / 1e6:.2f} MB, takes normalised images [batch, {', '.join(map(str, size))}]")


def description(network: Network, data: Data, scores: Scores, train: bool) -> dict[str, Any]:
    """Return what the file says of a network."""
    mean, std = data.normalisation()
    spikes = {"time_steps": network.time_steps, "delay": network.delay, "latency": latency(network), "start": network.start}
    return {"architecture": network.arch, "dataset": network.dataset, "classes": network.num_classes, "bits": network.bit,
            "weight_bits": network.weight_bit, "neuron": network.neuron, **(spikes if network.neuron else {}),
            "pixel_mean": list(mean), "pixel_std": list(std), "accuracy": round(scores.top1, 4),
            "accuracy_on": f"{scores.count} {'training' if train else 'test'} images", "revision": revision()}
