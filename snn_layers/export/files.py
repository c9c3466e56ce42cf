"""A network leaves PyTorch as one file: ONNX for any runtime, PT2 for torch alone."""

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Network

from ..neuron import NEURONS
from .network import Exported, exported

KINDS = (".onnx", ".pt2")
BATCHES = (5, 7, 11, 13)  # images in an example
METADATA = "metadata.json"  # in a .pt2 file


def check_file(path: Path, neuron: str | None = None) -> None:
    """Raise ValueError for a file of another kind or a neuron of one's own, ModuleNotFoundError if a package is missing."""
    if neuron not in (None, *NEURONS):
        raise ValueError(f"{path}: a file cannot hold {neuron} neurons, only {' or '.join(NEURONS)} ones")
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: a network is written as {' or '.join(KINDS)}")
    if path.suffix == ".onnx":
        try:
            import_module("onnx")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path} needs the package {error.name}: pip install -r requirements-export.txt, or write a "
                                      ".pt2 file", name=error.name) from error


@torch.no_grad()
def network_file(network: Network, path: Path, size: tuple[int, ...], metadata: dict[str, Any]) -> bytes:
    """Return the contents of a file of a quantized or a spiking network; for inputs and outputs see `Exported`.

    It holds weights as integers, and spikes or counts as bytes; batches may have any size.

    Args:
        network: on a CPU.
        path: ends in .onnx or .pt2; nothing is written.
        size: of an image, (C, H, W).
        metadata: facts that the file holds: numbers, text, lists of them; None is left out.

    Raises:
        ValueError: another ending, a float network, a neuron of one's own, or an operator without a counterpart; names the
            operator and its unit.
        ModuleNotFoundError: ONNX is not installed.
    """
    check_file(path, network.neuron)
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items() if value is not None}
    module, images = exported(network), example(network, size)
    if path.suffix == ".pt2":
        return torch_program(module, images, told)
    return import_module(".model", __package__).onnx_model(module, images, told).SerializeToString()


def example(network: Network, size: tuple[int, ...]) -> Tensor:
    """Return noise images [B, C, H, W], B no divisor of T, so that axes of batch and time differ in length."""
    batch = next(number for number in BATCHES if network.time_steps % number)
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


def torch_program(module: Exported, images: Tensor, metadata: dict[str, str]) -> bytes:
    """Return a network as a program that `torch.export.load` reads without this repository; its metadata is an extra file."""
    batch = torch.export.Dim("batch", min=1)
    # Deferred: torch 2.11 cannot prove that sizes which it compares are equal for each batch, and gives up.
    program = torch.export.export(module, (images,), dynamic_shapes={"images": {0: batch}},
                                  prefer_deferred_runtime_asserts_over_guards=True)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()
