"""An unsigned spiking network with the neurons of another library, to train, measure or deploy it with that library.

Only the neurons change: each becomes a module of SpikingJelly, snnTorch or Sinabs that starts where ours does, resets by
subtraction and fires at most once a step. The library's own module is `neuron.module`; a wrapper unfolds time and starts the
membrane anew in each pass. None of the three libraries has the signed neuron or a delay.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from models import Network

from ..neuron import IFNeuron


def exchange(snn: Network, library: str) -> Network:
    """Return the network with a library's neurons in place of ours; parameters are shared, input and output stay the same.

    Args:
        snn: a spiking network of unsigned neurons without a delay.
        library: "spikingjelly", "snntorch" or "sinabs".

    Raises:
        ValueError: another library, a network that does not spike, signed neurons, a delay.
        ModuleNotFoundError: the library is not installed; names the package.
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}: choose {', '.join(LIBRARIES)}")
    if snn.neuron is None:
        raise ValueError(f"the network does not spike: {library} takes what to_spiking(network, 'unsigned') returns")
    if snn.neuron != "unsigned" or snn.delay:
        what = f"a delay of {snn.delay}" if snn.neuron == "unsigned" else f"{snn.neuron} neurons"
        raise ValueError(f"the network has {what}, which {library} lacks: convert it with unsigned neurons and delay 0")
    kind = LIBRARIES[library]
    package = _package(kind.package)
    exchanged = snn.copy(buffers=True)
    for unit in exchanged.graph.units:
        exchanged.set_layer(unit.activation, kind(exchanged.layer(unit.activation), package))
    return exchanged.eval()


def _package(name: str) -> ModuleType:
    library = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or library).partition(".")[0]
        needs = "" if missing == library else f", which needs {missing},"
        raise ModuleNotFoundError(f"the package {library}{needs} is not installed: pip install {missing}", name=missing) from error


class LibraryNeuron(IFNeuron):
    """A library's module in the place of an IF neuron.

    Args:
        neuron: an unsigned neuron without a delay; threshold and bias are shared.
        package: the library.
    """

    package = ""

    def __init__(self, neuron: IFNeuron, package: ModuleType):
        super().__init__(neuron.threshold, neuron.time_steps, False, 0, neuron.encodes, neuron.start, neuron.bias)
        self.module = self.build(package, neuron.threshold.item())

    def build(self, package: ModuleType, threshold: float) -> nn.Module:
        """Return the library's module."""
        raise NotImplementedError

    def spike_train(self, current: Tensor) -> Tensor:
        """Map current as an `IFNeuron` does to spikes [T, B, ...] in {0, 1}."""
        current = self.currents(current)
        return self.fire(current, torch.full_like(current[0], self.threshold.item() * self.start)).to(current.dtype)

    def fire(self, current: Tensor, membrane: Tensor) -> Tensor:
        """Map currents [T, B, ...] and the membrane before the first step, [B, ...], to spikes [T, B, ...]."""
        raise NotImplementedError


class SpikingJellyNeuron(LibraryNeuron):
    """spikingjelly.activation_based.neuron.IFNode, many steps at once, soft reset."""

    package = "spikingjelly.activation_based.neuron"

    def build(self, package: ModuleType, threshold: float) -> nn.Module:
        """Return the library's module."""
        node = package.IFNode(v_threshold=threshold, v_reset=None, step_mode="m")
        node.set_reset_value("v", threshold * self.start)
        return node

    def fire(self, current: Tensor, membrane: Tensor) -> Tensor:
        """Return the spikes."""
        self.module.reset()
        return self.module(current)


class SnnTorchNeuron(LibraryNeuron):
    """snntorch.Leaky that does not leak, step by step.

    Its surrogate fires above the threshold, ours also at it: the smallest number added to v - θ turns a tie into a spike and
    changes nothing else. It subtracts the threshold at the start of the next step, so that v and I are summed in another order.
    """

    package = "snntorch"

    def build(self, package: ModuleType, threshold: float) -> nn.Module:
        """Return the library's module."""
        arctangent = package.surrogate.atan()
        return package.Leaky(beta=1.0, threshold=threshold, reset_mechanism="subtract",
                             spike_grad=lambda above: arctangent(above + torch.finfo(above.dtype).tiny))

    def fire(self, current: Tensor, membrane: Tensor) -> Tensor:
        """Return the spikes."""
        train = []
        for step in current:
            spikes, membrane = self.module(step, membrane)
            train.append(spikes)
        return torch.stack(train)


class SinabsNeuron(LibraryNeuron):
    """sinabs.layers.IAF with SingleSpike and MembraneSubtract, without a lower bound of the membrane; it takes [B, T, ...]."""

    package = "sinabs"

    def build(self, package: ModuleType, threshold: float) -> nn.Module:
        """Return the library's module."""
        activation = package.activation
        return package.layers.IAF(spike_threshold=torch.tensor(threshold), spike_fn=activation.SingleSpike,
                                  reset_fn=activation.MembraneSubtract(), min_v_mem=None)

    def fire(self, current: Tensor, membrane: Tensor) -> Tensor:
        """Return the spikes."""
        self.module.v_mem = membrane
        return self.module(current.transpose(0, 1)).transpose(0, 1)


LIBRARIES = {"spikingjelly": SpikingJellyNeuron, "snntorch": SnnTorchNeuron, "sinabs": SinabsNeuron}
