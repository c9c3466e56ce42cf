"""A network leaves PyTorch: as ONNX, or as a program for torch alone."""

from .files import KINDS, METADATA, check_file, network_file

__all__ = ["KINDS", "METADATA", "check_file", "network_file"]
