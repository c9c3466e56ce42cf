"""Spiking networks: the neuron, conversion, layer-wise fine-tuning, analysis."""

from .analysis import LayerMonitor, LayerStatistics, layer_statistics, layer_table
from .convert import NEURONS, latency, to_spiking
from .finetune import FinetuneConfig, TunedUnit, finetune
from .functional import integrate_and_fire
from .neuron import IFNeuron
from .states import state_bytes

__all__ = ["NEURONS", "FinetuneConfig", "IFNeuron", "LayerMonitor", "LayerStatistics", "TunedUnit", "finetune",
           "integrate_and_fire", "latency", "layer_statistics", "layer_table", "state_bytes", "to_spiking"]
