"""A network as an ONNX model."""

import onnx
import torch
from onnx import helper
from torch import Tensor

from .network import Exported
from .operators import OPERATORS
from .record import TYPES, record

OPSET, IR = 18, 9


def onnx_model(network: Exported, images: Tensor, metadata: dict[str, str]) -> onnx.ModelProto:
    """Return a network as an ONNX model, from "images" [batch, C, H, W]; see `Exported` for the outputs.

    Args:
        images: an example [B, C, H, W], B no divisor of T.
        metadata: facts that the file holds.

    Raises:
        ValueError: an operator without a counterpart; names the operator and its unit.
    """
    nodes, constants, outputs = record(network, images, OPERATORS)
    if sized := sorted(node.name for node in network.deployed.graph.flow.sized):
        _, others, _ = record(network, torch.cat((images, images)), OPERATORS)
        if [constant.dims for constant in constants] != [constant.dims for constant in others]:
            raise ValueError(f"{sized[0]} is a constant of as many rows as there are images, which no file can hold: add it to a "
                             "value, which has them")
    nodes, constants = used(nodes, constants, set(outputs))
    takes = helper.make_tensor_value_info("images", TYPES[images.dtype], ["batch", *images.shape[1:]])
    gives = [helper.make_tensor_value_info(name, TYPES[x.dtype], shape(name, x, len(images))) for name, x in outputs.items()]
    graph = helper.make_graph(nodes, metadata.get("architecture") or "network", [takes], gives, constants)
    model = helper.make_model(graph, producer_name="fast-snn", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def shape(name: str, x: Tensor, batch: int) -> list[int | str]:
    """Return an output's shape, with a name for the batch."""
    axis = int(name.startswith("readouts"))
    return ["batch" if at == axis and length % batch == 0 else length for at, length in enumerate(x.shape)]


def used(nodes: list, constants: list, wanted: set[str]) -> tuple[list, list]:
    """Return the nodes and constants that the outputs need."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1], [constant for constant in constants if constant.name in wanted]
