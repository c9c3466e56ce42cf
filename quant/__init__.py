"""Quantization: grids, projections with straight-through gradients, layers, and the swap `quantize_`."""

from .compiled import Compiled, compiled
from .convert import dequantize_, quantize_, requantize_, swap_
from .faults import check_values, fault
from .fit import fit_, learn_, normalised, outputs
from .functional import nearest_level, quantize_activation, quantize_eight_bit, quantize_weight, replace_activation
from .layers import APoTWeight, EightBitWeight, QuantConv2d, Quantized, QuantLinear, QuantReLU, quantized_once, shifted
from .levels import FLOAT_BITS, MAX_BITS, MIN_BITS, apot_grid, check_bits, common_step, time_steps
from .scalars import scalars, thresholds

__all__ = ["FLOAT_BITS", "MAX_BITS", "MIN_BITS", "APoTWeight", "Compiled", "EightBitWeight", "QuantConv2d",
           "QuantLinear", "QuantReLU", "Quantized", "apot_grid", "check_bits", "check_values", "common_step", "compiled",
           "dequantize_", "fault", "fit_", "learn_", "nearest_level", "normalised", "outputs", "quantize_",
           "quantize_activation", "quantize_eight_bit", "quantize_weight", "quantized_once", "replace_activation",
           "requantize_", "scalars", "shifted", "swap_", "thresholds", "time_steps"]
