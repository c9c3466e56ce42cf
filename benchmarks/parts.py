"""What is measured: each part returns rows, a ratio of two contenders beside its target."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import models
from models import Network
from quant import calibrate_, fuse_, quantize_, quantized_once, time_steps
from snn_layers import FinetuneConfig, deploy, finetune, to_spiking
from utils.checkpoint import load_network
from utils.cifar import ImageSet, TensorLoader
from utils.engine import autocast, sgd

from .timing import Times, alternate, peak_bytes

BATCH = 128


@dataclass(frozen=True)
class Row:
    """A ratio (median and quartiles) beside its target; `at_most` says on which side of the target it should lie."""

    what: str
    ratio: float
    low: float
    high: float
    target: float | None = None
    stretch: float | None = None
    at_most: bool = True
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def met(self) -> bool:
        """Return whether the target is met."""
        return self.target is None or (self.ratio <= self.target if self.at_most else self.ratio >= self.target)


def row(times: Times, what: str, name: str, base: str, target: float | None = None, stretch: float | None = None,
        at_most: bool = True) -> Row:
    """Return the row of name / base."""
    return Row(what, *times.ratio(name, base), target, stretch, at_most, (times.median(name), times.median(base)))


def noise(count: int) -> Tensor:
    """Return images [count, 3, 32, 32], channels last."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def networks(arch: str, bit: int) -> tuple[Network, Network]:
    """Return a float network and a quantized one of the same architecture, in eval mode, channels last."""
    torch.manual_seed(0)
    plain = models.build(arch)
    if arch == "resnet20":
        ann = load_network(f"result/published/resnet20_{bit}bit.pth.tar")
    else:
        ann = calibrate_(quantize_(copy.deepcopy(plain), bit), noise(32))
    return tuple(network.eval().to(memory_format=torch.channels_last) for network in (plain, ann))


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
        for path, targets in (("float path", (2.2, 6.0)), ("integer path", ())):
            what = f"SpikingJelly 2.0 / SNN T={steps}, {arch}, {path}"
            rows.append(row(times, what, "SpikingJelly", path, *targets, at_most=False))
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
        RuntimeError: its spikes differ from ours.
    """
    try:
        from spikingjelly.activation_based.neuron import IFNode
    except ImportError:
        print("SpikingJelly is not installed: pip install -r requirements-bench.txt makes it a contender")
        return None
    ours = to_spiking(ann, "unsigned")
    theirs = copy.deepcopy(ours)
    for _, unit in theirs.units():
        node = IFNode(v_threshold=unit.activation.threshold.item(), v_reset=None, step_mode="m").eval()
        unit.activation = JellyNeuron(unit.activation, node)
    trains: dict[str, list[Tensor]] = {}
    for network in (ours, theirs):
        for name, unit in network.units():
            hook = unit.register_forward_hook(lambda _, __, spikes, name=name: trains.setdefault(name, []).append(spikes.clone()))
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


def training(rounds: int = 7) -> list[Row]:
    """A training step of the quantized ResNet-20, as it is and with --compile, over one of the float network."""
    images, labels = noise(BATCH), torch.arange(BATCH) % 10
    plain, quantized = networks("resnet20", 3)
    contenders = {}
    for amp, precision in ((False, "float32"), (True, "bfloat16")):
        for name, network in (("float", plain), ("quantized", quantized), ("compiled", fuse_(copy.deepcopy(quantized)))):
            optimizer = sgd(network.train(), 1e-4, 0.9, 1e-4)
            contenders[f"{name} {precision}"] = partial(step, network, optimizer, images, labels, amp)
    times = alternate(contenders, rounds, warm_up=2, name="training step")
    rows = []
    for precision in ("float32", "bfloat16"):
        what = f"training step, ResNet-20, {precision}: quantized{{}} / float"
        rows += [row(times, what.format(""), f"quantized {precision}", f"float {precision}"),
                 row(times, what.format(", --compile,"), f"compiled {precision}", f"float {precision}", 1.25, 1.1)]
    return rows


def step(network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, amp: bool) -> None:
    """Make one step of SGD."""
    with autocast(images.device, amp):
        logits = network(images)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class PerImage(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR10 hands them out: one PIL image at a time, through its transforms."""

    def __init__(self, images: ImageSet):
        from torchvision import transforms

        self.images, self.labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels
        self.transform = transforms.Compose([transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(),
                                             transforms.ToTensor(), transforms.Normalize(images.mean, images.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (image [3, 32, 32], label)."""
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(count: int = 20_000, rounds: int = 5) -> list[Row]:
    """The tensor loader over torchvision's transforms in a DataLoader with 2 workers."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(count) % 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), flips=True)
    ours = TensorLoader(images, BATCH, augment=True)
    theirs = torch.utils.data.DataLoader(PerImage(images), BATCH, shuffle=True, num_workers=2)
    times = alternate({"ours": partial(exhaust, ours), "torchvision": partial(exhaust, theirs)}, rounds, name="loader")
    per_second = count / times.median("ours")
    return [row(times, "loader images/s / torchvision DataLoader, 2 workers", "torchvision", "ours", 5, 15, at_most=False),
            Row("loader, thousand images/s", *(per_second / 1000,) * 3, 20, None, at_most=False)]


def exhaust(batches: object) -> None:
    """Run through a loader."""
    for _ in batches:
        pass


def tuning(count: int = 1000, rounds: int = 1) -> list[Row]:
    """Layer-wise fine-tuning with kept states over the published way, which runs the network up to the unit each time."""
    _, ann = networks("resnet20", 2)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in noise(count).split(BATCH)]

    def run(online: bool) -> None:
        finetune(to_spiking(ann), ann, batches, batches[:2], FinetuneConfig(lr=1e-4, online=online))

    times = alternate({"online": partial(run, True), "kept": partial(run, False)}, rounds, warm_up=0, name="fine-tuning")
    return [row(times, f"fine-tuning all of ResNet-20, {count} images: --online / default", "online", "kept", 4, 8, at_most=False)]


def memory(side: int = 4096) -> list[Row]:
    """Peak memory of a projection, forward and backward, over the weight itself."""
    code = (f"import torch\nfrom quant import apot_grid, quantize_weight\nweight = torch.randn({side}, {side})\n"
            "numerators, denominator = apot_grid(5)\nlevels = torch.tensor(numerators) / denominator\n"
            "quantize_weight(weight[:8].clone().requires_grad_(), torch.tensor(3.0), levels).sum().backward()\n"
            "weight.requires_grad_()\nready()\nwith torch.no_grad():\n    quantize_weight(weight, torch.tensor(3.0), levels)")
    forward = peak_bytes(code) / (4 * side * side)
    backward = peak_bytes(code.replace("with torch.no_grad():\n    quantize_weight(weight, torch.tensor(3.0), levels)",
                                       "quantize_weight(weight, torch.tensor(3.0), levels).sum().backward()")) / (4 * side * side)
    return [Row(f"peak memory of a {side}x{side} projection / the weight", *(forward,) * 3, 4, 3),
            Row("the same, forward and backward", *(backward,) * 3)]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "memory": memory,
    "loader": loader,
    "training": training,
    **{f"{arch}-{bit}": partial(inference, arch, bit, count, rounds)
       for arch, count, rounds in (("resnet20", BATCH, 7), ("alex", BATCH, 5), ("resnet18", 16, 3)) for bit in (2, 3, 4)},
    "tuning": tuning,
}
