"""The second swap: quantized ReLUs for integrate-and-fire neurons."""

from torch import nn

from models import Network
from quant import FLOAT_BITS, check_values, time_steps

from .functional import HALF
from .neuron import IFNeuron, Neuron, levels, named
from .step_norm import StepNorm, norm_steps, refuse_steps


def to_spiking(network: Network, neuron: str | Neuron = "signed", delay: int = 0, steps: int | None = None,
               start: float = HALF) -> Network:
    """Return the spiking network of a quantized one; the parameters are shared, the input is kept.

    It maps images [B, 3, H, W] to logits [B, classes], the mean over T. A neuron whose current is static integrates a constant:
    it rounds exactly and never waits. With a `delay` every other neuron waits.

    Args:
        neuron: "signed", "unsigned", or another equation.
        start: membrane of every neuron before the first step, in θ: 1/2, or 0 as an ablation.
        steps: T, or T' < T to read out early: the first T' steps of the same network; None: T = 2^bit - 1, or the steps that
            the network was tuned through. With a delay the first T' outputs take more than T' steps of input: run all T and see
            `Deployed.readouts`.

    Raises:
        ValueError: a float or spiking network, an unknown neuron, steps outside 1..T, a delay outside 0..T or with fewer steps,
            another start, impossible thresholds, variances or weights (names the layer).
    """
    refuse_others(network)
    kind = named(neuron) if isinstance(neuron, str) else neuron
    full = norm_steps(network) or time_steps(network.bit)
    steps = full if steps is None else steps
    if not 1 <= steps <= full:
        tuned = "" if norm_steps(network) is None else " that is tuned through time"
        raise ValueError(f"steps is {steps}: a {network.bit}-bit network{tuned} runs 1 to T = {full} time steps")
    if not 0 <= delay <= full:
        raise ValueError(f"delay is {delay}: choose 0 to T = {full}")
    if delay and steps < full:
        raise ValueError(f"delay is {delay} and steps {steps}: neurons that wait need later inputs for their first outputs; run "
                         f"all {full} steps, which shows the accuracy after fewer too")
    if start not in (0, HALF):
        raise ValueError(f"start is {start}: choose 0 or {HALF} thresholds")
    check_values(network)
    spiking = network.copy(buffers=True, neuron=kind.name, delay=delay, time_steps=steps, start=start)
    for unit in spiking.graph.units:
        relu, waits = spiking.layer(unit.activation), 0 if unit.encodes else delay
        spiking.set_layer(unit.activation, IFNeuron.from_quantized(relu, steps, kind, waits, unit.encodes, start))
    for module in spiking.modules():
        if isinstance(module, StepNorm):
            module.time_steps = steps
    return spiking.eval()


def to_levels(network: Network) -> Network:
    """Return a quantized network as one whose neurons run a single step, in which they fire 0 to T spikes at θ/T.

    Raises:
        ValueError: a float or spiking network, one with BN of each time step, impossible thresholds, variances or weights (names
            the layer).
    """
    refuse_others(network)
    refuse_steps(network)
    check_values(network)
    one = network.copy(buffers=True, neuron="levels", delay=0, time_steps=1, start=HALF)
    for unit in one.graph.units:
        relu = one.layer(unit.activation)
        step = nn.Parameter(relu.threshold.detach().double() / relu.time_steps, requires_grad=False)
        one.set_layer(unit.activation, IFNeuron(step, 1, levels(relu.time_steps), encodes=unit.encodes, bias=relu.bias))
    return one.eval()


def refuse_others(network: Network) -> None:
    """Raise ValueError unless a network is a quantized one that does not spike."""
    if not isinstance(network, Network):
        raise ValueError(f"a {type(network).__name__} is not quantized: take the network that quantize_ returns")
    if network.neuron is not None:
        raise ValueError(f"the network spikes already ({network.neuron}): convert its quantized ANN")
    if network.bit == FLOAT_BITS:
        raise ValueError("a float network has no thresholds: quantize it first (bit 2 to 8)")


def own_parameters_(network: Network) -> None:
    """Give a network parameters and buffers of its own, in place, so that tuning it does not change its ANN."""
    own = {parameter: nn.Parameter(parameter.detach().clone(), parameter.requires_grad) for parameter in network.parameters()}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            module._parameters[name] = own[parameter]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.clone()


def latency(network: Network) -> int:
    """Return the steps from the first input to the last output: T + d · (neurons that wait on the longest path)."""
    return network.time_steps + network.delay * network.graph.readout.waiting
