"""A network leaves as a file that holds its facts too: --export."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from models import Network
from snn_layers import latency
from snn_layers.export import check_file, network_file

from ..distributed.processes import Place
from ..errors import UserError
from ..files import replacing
from .checkpoint import revision


def check_export(path: Path | None, neuron: str | None = None) -> None:
    """Raise UserError if the file of --export cannot be written, or cannot hold a network of such neurons."""
    if path is None:
        return
    try:
        check_file(path, neuron)
    except (ValueError, ModuleNotFoundError) as error:
        raise UserError(f"--export {error}") from error
    if not path.parent.is_dir():
        raise UserError(f"--export {path}: {path.parent} is no directory; make it first")


def export(network: Network, path: Path, size: tuple[int, int, int], pixels: tuple[tuple[float, ...], tuple[float, ...]],
           accuracy: float, accuracy_on: str) -> None:
    """Write a quantized or a spiking network to a file, whole or not at all; of several processes the first one writes.

    Args:
        size: [C, H, W] of an image.
        pixels: mean and standard deviation of the channels on the scale [0, 1].
        accuracy: in percent, measured on the images that `accuracy_on` names.

    Raises:
        UserError: the format cannot hold the network, or the file cannot be written.
    """
    if not Place.of_environment().first:
        return
    facts = description(network) | {"pixel_mean": list(pixels[0]), "pixel_std": list(pixels[1]), "accuracy": round(accuracy, 4),
                                    "accuracy_on": accuracy_on, "revision": revision()}
    try:
        contents = network_file(deepcopy(network).cpu().float(), path, size, facts)
    except ValueError as error:
        raise UserError(f"--export {path}: {error}") from error
    with replacing(path) as file:
        file.write(contents)
    print(f"{path}: {len(contents) / 1e6:.2f} MB, takes normalised images [batch, {', '.join(map(str, size))}]")


def description(network: Network) -> dict[str, Any]:
    """Return the facts of a network for its file."""
    spikes = {"time_steps": network.time_steps, "delay": network.delay, "latency": latency(network), "start": network.start}
    return {"architecture": network.arch, "dataset": network.dataset, "classes": network.num_classes, "bits": network.bit,
            "weight_bits": network.weight_bit, "neuron": network.neuron} | (spikes if network.neuron else {})
