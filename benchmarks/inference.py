"""Spiking inference over the float network's, with SpikingJelly beside it."""

import copy

import torch
from torch import Tensor, nn

from models import Network
from quant import quantized_once, time_steps
from snn_layers import deploy, to_spiking

from .rows import BATCH, Row, networks, noise, row
from .timing import alternate


class InferenceOnly:
    """A network as a call without autograd, its weights quantized once."""

    def __init__(self, network: nn.Module, images: Tensor):
        self.network, self.images = network, images

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Return the logits."""
        with quantized_once(self.network):
            return self.network(self.images)


def inference(arch: str, bit: int, count: int = BATCH, rounds: int = 7) -> list[Row]:
    """Spiking networks over the float32 forward pass of the same architecture."""
    steps, images = time_steps(bit), noise(count)
    plain, ann = networks(arch, bit)
    snn = to_spiking(ann)
    contenders: dict[str, nn.Module] = {"float ANN": plain, "plain layers": snn, "float path": deploy(snn, integer=False)}
    narrow, wide = arch == "resnet20" and bit == 2, arch == "alex" and bit == 2
    if arch != "resnet18":
        contenders["integer path"] = deploy(snn, integer=True)
    jelly = spikingjelly_network(ann, images) if narrow else None
    if jelly is not None:
        contenders["SpikingJelly"] = jelly
    times = alternate({name: InferenceOnly(network, images) for name, network in contenders.items()}, rounds,
                      name=f"{arch}, T = {steps}")
    label = f"SNN T={steps}, {arch}, {{}} / float32 ANN"
    rows = [row(times, label.format("plain layers"), "plain layers", "float ANN"),
            row(times, label.format("float path"), "float path", "float ANN", *((3.3, 3.0) if narrow else ()))]
    if "integer path" in contenders:
        targets = (2.3, 1.5) if narrow else (1.3, 1.0) if wide else ()
        rows.append(row(times, label.format("integer path"), "integer path", "float ANN", *targets))
    if jelly is not None:
        for path in ("float path", "integer path"):
            what = f"SpikingJelly 2.0 / SNN T={steps}, {arch}, {path}"
            rows.append(row(times, what, "SpikingJelly", path, 2.2, 6.0, at_most=False))
    return rows


class JellyNeuron(nn.Module):
    """SpikingJelly's multi-step IF node in place of our unsigned neuron; its membrane starts at θ/2."""

    def __init__(self, neuron: nn.Module, node: nn.Module):
        super().__init__()
        self.node, self.encodes, self.steps = node, neuron.encodes, neuron.time_steps
        self.threshold = neuron.threshold.item()

    def forward(self, current: Tensor) -> Tensor:
        """Map current as our neuron does."""
        current = current.expand(self.steps, *current.shape) if self.encodes else current.unflatten(0, (self.steps, -1))
        self.node.reset()
        self.node.v = self.threshold / 2
        return (self.node(current) * self.threshold).flatten(0, 1)


def spikingjelly_network(ann: Network, images: Tensor) -> Network | None:
    """Return the unsigned spiking network with SpikingJelly's neurons; None where it is not installed.

    Raises:
        RuntimeError: more than 1 in 10,000 of its spikes differ from ours.
    """
    try:
        from spikingjelly.activation_based.neuron import IFNode
    except ImportError:
        print("SpikingJelly is not installed: pip install -r requirements-bench.txt makes it a contender")
        return None
    ours = to_spiking(ann, "unsigned")
    theirs = copy.deepcopy(ours)
    for name, neuron in list(theirs.units()):
        node = IFNode(v_threshold=neuron.threshold.item(), v_reset=None, step_mode="m").eval()
        theirs.set_layer(theirs.graph.activations[name], JellyNeuron(neuron, node))
    trains: dict[str, list[Tensor]] = {}
    for network in (ours, theirs):
        for name, neuron in network.units():
            hook = neuron.register_forward_hook(lambda _, __, spikes, name=name: trains.setdefault(name, []).append(spikes.clone()))
            trains.setdefault("hooks", []).append(hook)
        InferenceOnly(network, images[:16])()
    for hook in trains.pop("hooks"):
        hook.remove()
    differing = sum((a - b).abs().gt(1e-3).sum().item() for a, b in trains.values())
    total = sum(a.numel() for a, _ in trains.values())
    print(f"SpikingJelly's unsigned spikes beside ours: {differing} of {total:,} differ")
    if differing > 1e-4 * total:
        raise RuntimeError(f"{differing} of {total} spikes differ: SpikingJelly is no fair contender")
    return theirs
