"""Spiking networks: the neuron, conversion, calibration, fine-tuning, fast inference, analysis."""

from .analysis import LayerMonitor, LayerStatistics, layer_table
from .calibrate import calibrate_rates_
from .convert import NEURONS, latency, own_parameters_, to_spiking
from .deploy import Deployed, deploy
from .finetune import FinetuneConfig, TunedUnit, UnitProgress, finetune
from .functional import HALF, integrate_and_fire
from .neuron import IFNeuron
from .rate import RateNetwork, rate_logits
from .states import state_bytes

__all__ = ["HALF", "NEURONS", "Deployed", "FinetuneConfig", "IFNeuron", "LayerMonitor", "LayerStatistics", "RateNetwork",
           "TunedUnit", "UnitProgress", "calibrate_rates_", "deploy", "finetune", "integrate_and_fire", "latency", "layer_table",
           "own_parameters_", "rate_logits", "state_bytes", "to_spiking"]
