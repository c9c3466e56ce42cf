"""Spiking networks: the neuron, conversion, calibration, fine-tuning, fast inference, analysis."""

from .analysis import LayerMonitor, LayerStatistics, layer_table
from .calibrate import calibrate_rates_
from .convert import latency, own_parameters_, to_spiking
from .deploy import Deployed, deploy
from .exchange import exchange
from .finetune import FinetuneConfig, TunedUnit, UnitProgress, finetune
from .functional import HALF, integrate_and_fire
from .neuron import NEURONS, IFNeuron, Neuron
from .rate import RateNetwork, rate_logits
from .recording import spikes
from .states import state_bytes
from .step_norm import StepNorm, adopt_steps_, norm_steps
from .through_time import NORMS, SURROGATES, ThroughTime, TimeConfig, fire_through_time

__all__ = ["HALF", "NEURONS", "NORMS", "SURROGATES", "Deployed", "FinetuneConfig", "IFNeuron", "LayerMonitor",
           "LayerStatistics", "Neuron", "RateNetwork", "StepNorm", "ThroughTime", "TimeConfig", "TunedUnit", "UnitProgress",
           "adopt_steps_", "calibrate_rates_", "deploy", "exchange", "finetune", "fire_through_time", "integrate_and_fire",
           "latency", "layer_table", "norm_steps", "own_parameters_", "rate_logits", "spikes", "state_bytes", "to_spiking"]
