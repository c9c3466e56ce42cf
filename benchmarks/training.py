"""Training: a quantized step over a float one, the loader over torchvision's, the memory of a projection."""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from utils.data.cifar import ImageSet, TensorLoader
from utils.training.engine import sgd
from utils.training.step import Step

from .rows import BATCH, Row, networks, noise, row
from .timing import alternate, peak_bytes


def training(rounds: int = 7) -> list[Row]:
    """A training step of the quantized ResNet-20, as it is and with --compile, over one of the float network."""
    images, labels = noise(BATCH), torch.arange(BATCH) % 10
    plain, quantized = networks("resnet20", 3)
    contenders = {}
    for amp, precision in ((False, "float32"), (True, "bfloat16")):
        for name, network in (("float", plain), ("quantized", quantized), ("compiled", copy.deepcopy(quantized))):
            step = Step(network.train(), sgd(network, 1e-4, 0.9, 1e-4), amp, compile=name == "compiled")
            contenders[f"{name} {precision}"] = partial(step, images, labels, 1e-4)
    times = alternate(contenders, rounds, warm_up=2, name="training step")
    rows = []
    for precision in ("float32", "bfloat16"):
        what = f"training step, ResNet-20, {precision}: quantized{{}} / float"
        rows += [row(times, what.format(""), f"quantized {precision}", f"float {precision}"),
                 row(times, what.format(", --compile,"), f"compiled {precision}", f"float {precision}", 1.25, 1.1)]
    return rows


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


def exhaust(batches: Iterable) -> None:
    """Run through a loader."""
    for _ in batches:
        pass


def memory(side: int = 4096) -> list[Row]:
    """Peak memory of a projection, forward and backward, over the weight itself."""
    setup = ("import torch\nfrom quant import apot_grid, quantize_weight\n"
             f"weight = torch.randn({side}, {side}, requires_grad=True)\n"
             "numerators, denominator = apot_grid(5)\nlevels, clip = torch.tensor(numerators) / denominator, torch.tensor(3.0)\n"
             "quantize_weight(weight[:8], clip, levels)")
    forward = peak_bytes(setup, "with torch.no_grad():\n    quantize_weight(weight, clip, levels)") / (4 * side * side)
    backward = peak_bytes(setup, "quantize_weight(weight, clip, levels).sum().backward()") / (4 * side * side)
    return [Row(f"peak memory of a {side}x{side} projection / the weight", *(forward,) * 3, 4, 3),
            Row("the same, forward and backward", *(backward,) * 3)]
