"""Spiking networks: the neuron, conversion, calibration, tuning, fast inference, analysis."""

from .analysis import LayerMonitor, LayerStatistics, layer_table, spikes
from .calibrate import calibrate_rates_
from .convert import latency, own_parameters_, to_spiking
from .deployment.deploy import Deployed, deploy
from .export.exchange import exchange
from .functional import HALF, integrate_and_fire
from .neuron import NEURONS, IFNeuron, Neuron, checked, neuron_of, waits
from .step_norm import StepNorm, adopt_steps_, norm_steps
from .stored import stored_bytes
from .tuning.layerwise import FinetuneConfig, TunedUnit, UnitProgress, finetune, refuse_shared_weights
from .tuning.rate import RateNetwork, rate_logits
from .tuning.surrogate import SURROGATES, fire_through_time
from .tuning.through_time import NORMS, ThroughTime, TimeConfig, refuse_norms

__all__ = ["HALF", "NEURONS", "NORMS", "SURROGATES", "Deployed", "FinetuneConfig", "IFNeuron",
           "LayerMonitor", "LayerStatistics", "Neuron", "RateNetwork", "StepNorm", "ThroughTime", "TimeConfig", "TunedUnit",
           "UnitProgress", "adopt_steps_", "calibrate_rates_", "checked", "deploy", "exchange", "finetune",
           "fire_through_time", "integrate_and_fire", "latency", "layer_table", "neuron_of", "norm_steps", "own_parameters_",
           "rate_logits", "refuse_norms", "refuse_shared_weights", "spikes", "stored_bytes", "to_spiking", "waits"]
