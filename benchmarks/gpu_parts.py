"""The parts of benchmarks/gpu.py; each writes a row as soon as it has one."""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from benchmarks.gpu_chain import chain
from benchmarks.timing import alternate, synchronize
from models import INPUT
from quant import fit_, quantize_, quantized_once, time_steps
from snn_layers import deploy, spikes, to_spiking
from utils.checkpoints.checkpoint import load_network
from utils.data.cifar import ImageSet, TensorLoader, load_images
from utils.training.engine import sgd
from utils.training.step import Step, autocast

Row = dict[str, Any]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PUBLISHED = Path("result/published")


def tests(data: Path, seconds: float) -> Iterator[Row]:
    """Run the tests of the device; without a GPU they run on a pretended one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/device_checks.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    print(done.stdout[-20000:], done.stderr[-4000:])
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            yield {"failed": line[:300]}
    yield {"tests": (done.stdout.strip().splitlines() or ["nothing printed"])[-1]}


def shapes() -> dict[tuple[int, ...], str]:
    """Return the different hidden convolutions of the networks for CIFAR: (C', C, kernel, stride, padding, size) and a name."""
    found: dict[tuple[int, ...], str] = {}
    for arch in ("resnet20", "alex", "vgg11", "resnet18") if GPU else ("resnet20",):
        network = models.build(arch).eval()

        def note(conv: nn.Module, inputs: tuple[Tensor, ...], _: object, arch: str = arch) -> None:
            geometry = (conv.out_channels, conv.in_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])
            if conv.in_channels > 3:
                found.setdefault((*geometry, inputs[0].shape[-1]), arch)

        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(note)
        with torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
    return found


def exact(data: Path, seconds: float) -> Iterator[Row]:
    """Count, for each convolution of spikes with APoT integers, the sums that are not exact, before and after rounding."""
    draw = torch.Generator().manual_seed(0)
    for (out, channels, kernel, stride, padding, size), name in shapes().items():
        fired = torch.randint(-1, 2, (16 if GPU else 1, channels, size, size), generator=draw).to(DEVICE)
        for bits, largest in ((3, 4), (4, 10), (5, 48)):
            weight = torch.randint(-largest, largest + 1, (out, channels, kernel, kernel), generator=draw).to(DEVICE)
            true = F.conv2d(fired.double(), weight.double(), None, stride, padding)
            row: Row = {"shape": f"{name} {channels}->{out} k{kernel} s{stride} {size}x{size}", "weight_bits": bits,
                        "largest_sum": int(true.abs().max())}
            for kind in ("fp32", "tf32", "fp32 benchmark", "tf32 benchmark", "fp16"):
                torch.backends.cudnn.allow_tf32 = kind.startswith("tf32")
                torch.backends.cudnn.benchmark = kind.endswith("benchmark")
                dtype = torch.float16 if kind == "fp16" else torch.float32
                x, w = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (fired, weight))
                ours = F.conv2d(x, w, None, stride, padding).double()
                row[kind] = int((ours != true).sum())
                row[f"{kind} rounded"] = int((ours.round() != true).sum())
            yield row


def accuracy(data: Path, seconds: float) -> Iterator[Row]:
    """Score the networks in result/published on the test images; compare their spikes with those of a float64 run on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    recorded = {4: (91.95, 91.73), 3: (91.27, 90.42), 2: (88.45, 86.74)}
    images = load_images("cifar10", data, train=False)
    loader = TensorLoader(images, 500, augment=False, device=DEVICE, limit=None if GPU else 100)
    few = TensorLoader(images, 64 if GPU else 8, augment=False).first(64 if GPU else 8)
    for bit, (ann_recorded, snn_recorded) in list(recorded.items())[0 if GPU else 2 :]:
        ann = load_network(PUBLISHED / f"resnet20_{bit}bit.pth.tar").eval()
        snn = to_spiking(ann)
        on_gpu = copy.deepcopy(ann).to(DEVICE, memory_format=torch.channels_last)
        deployed = deploy(to_spiking(on_gpu), compile=GPU)
        with torch.inference_mode(), quantized_once(on_gpu):
            hits = torch.zeros(2, device=DEVICE)
            for batch, labels in loader:
                hits += torch.stack([(network(batch).argmax(1) == labels).sum() for network in (on_gpu, deployed)])
        scores = [round(100 * hit / loader.count, 2) for hit in hits.tolist()]
        yield {"bits": bit, "images": loader.count, "ann": scores[0], "ann_recorded": ann_recorded, "snn": scores[1],
               "snn_recorded": snn_recorded}
        with torch.inference_mode():
            true = spikes(copy.deepcopy(snn).double(), few.double())
        values, differing = {INPUT: few.to(DEVICE)}, 0
        for unit in deployed.graph.units:
            values, fired = deployed.step(unit, values)
            differing += int((fired.cpu().double() - deployed.zero != true[unit.name].flatten(0, 1)).sum())
        yield {"bits": bit, "spikes_differing": differing, "of": sum(train.numel() for train in true.values()), "images": len(few)}


def speed(data: Path, seconds: float) -> Iterator[Row]:
    """Time training steps and forward passes, in images/s, with peak memory."""
    end = time.monotonic() + seconds
    torch.backends.cudnn.benchmark = True
    count = 50_000 if GPU else 256
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(count) % 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), flips=True)
    for arch in ("resnet20", "alex", "resnet18") if GPU else ("resnet20",):
        for batch in (128, 512) if GPU else (8,):
            for bit, compile in ((3, True), (32, True), (3, False), (32, False)) if GPU else ((3, False),):
                if time.monotonic() > end - 30:
                    return
                yield attempt(lambda a=arch, b=batch, i=bit, c=compile: training_row(a, b, i, c, images))
        for bit in (2, 3, 4) if GPU else (2,):
            yield from spiking_rows(arch, bit, images)


def attempt(measure: Callable[[], Row]) -> Row:
    """Return a row, or the error in its place."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def fresh_step(arch: str, bit: int, images: Tensor, compile: bool) -> Step:
    """Return the step of a new network, fitted to images where it is quantized, at the start of an epoch."""
    network = quantize_(models.build(arch), bit).to(DEVICE, memory_format=torch.channels_last)
    if bit < 32:
        fit_(network, images)
    step = Step(network, sgd(network, 0.01, 0.9, 1e-4), amp=GPU, compile=compile and GPU)
    step.begin()
    return step


def training_row(arch: str, batch: int, bit: int, compile: bool, images: ImageSet) -> Row:
    """Time training in bfloat16, with its loader."""
    torch.manual_seed(0)
    loader = TensorLoader(images, batch, augment=True, device=DEVICE)
    step = fresh_step(arch, bit, loader.first(batch), compile)
    reset_peak()
    seen, began, warm = 0, 0.0, 12 if GPU else 1
    started = time.monotonic()
    for number, (x, y) in enumerate(loader):
        if number == warm:
            synchronize()
            began, seen = time.monotonic(), 0
        step(x, y, 0.01)
        seen += len(y)
        if number == (150 if GPU else 3):
            break
    synchronize()
    took = time.monotonic() - began
    step.check("speed")
    return {"train": arch, "bits": bit, "batch": batch, "compiled": compile, "captured": step.captured is not None,
            "images_per_s": round(seen / took), "ms_per_step": round(1000 * took / (number - warm + 1), 3),
            "warm_up_s": round(began - started, 1), "peak_mb": peak_mb()}


def spiking_rows(arch: str, bit: int, images: ImageSet) -> Iterator[Row]:
    """Time spiking forward passes over the float one in bfloat16."""
    torch.manual_seed(0)
    batch = (512 if arch == "resnet20" else 256) if GPU else 4
    x = TensorLoader(images, batch, augment=False, device=DEVICE).first(batch)
    plain = models.build(arch).eval().to(DEVICE, memory_format=torch.channels_last)
    ann = fit_(quantize_(copy.deepcopy(plain), bit), x).eval()
    snn = to_spiking(ann)
    base = None
    contenders: dict[str, Callable[[], nn.Module]] = {
        "float bfloat16": lambda: plain, "float bfloat16 compiled": lambda: torch.compile(plain) if GPU else plain,
        "plain layers": lambda: snn, "deployed": lambda: deploy(snn, compile=GPU)}
    for name, make in contenders.items():
        def measure(name: str = name, make: Callable[[], nn.Module] = make) -> Row:
            network = make()
            reset_peak()

            @torch.inference_mode()
            def run() -> None:
                with autocast(DEVICE, "bfloat16" in name):
                    network(x)
            with quantized_once(snn):
                took = alternate({name: run}, 10 if GPU else 1, 3 if GPU else 1).median(name)
            return {"forward": arch, "T": time_steps(bit), "batch": batch, "network": name, "images_per_s": round(batch / took),
                    "ms": round(1000 * took, 3), "peak_mb": peak_mb()}
        row = attempt(measure)
        base = base or row.get("ms")
        yield row | {"over_float": round(row["ms"] / base, 2) if base and "ms" in row else None}


def repeat(data: Path, seconds: float) -> Iterator[Row]:
    """See whether steps repeat bit for bit with --deterministic, and whether a step waits for the device."""
    count = 64 if GPU else 4
    x, y = torch.randn(count, 3, 32, 32, device=DEVICE), torch.arange(count, device=DEVICE) % 10
    x = x.contiguous(memory_format=torch.channels_last)
    for compile in (False, True) if GPU else (False,):
        def measure(compile: bool = compile) -> Row:
            torch.use_deterministic_algorithms(True, warn_only=True)
            states = []
            for _ in range(2):
                torch.manual_seed(0)
                step = fresh_step("resnet20", 3, x, compile)
                for _ in range(10 if GPU else 3):
                    step(x, y, 0.01)
                states.append([t.clone() for t in step.network.state_dict().values()])
            torch.use_deterministic_algorithms(False)
            differing = sum(not torch.equal(a, b) for a, b in zip(*states, strict=True))
            return {"deterministic": True, "compiled": compile, "tensors_differing": differing, "of": len(states[0])}
        yield attempt(measure)

        def silent(compile: bool = compile) -> Row:
            step = fresh_step("resnet20", 3, x, compile)
            for _ in range(6):
                step(x, y, 0.01)
            if GPU:
                torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(10):
                    step(x, y, 0.01)
            finally:
                if GPU:
                    torch.cuda.set_sync_debug_mode("default")
            return {"steps_without_waiting": 10, "compiled": compile}
        yield attempt(silent)


def reset_peak() -> None:
    """Forget the largest memory so far."""
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> int | None:
    """Return the largest memory of the GPU since `reset_peak`, in MB."""
    return torch.cuda.max_memory_allocated() // 10**6 if GPU else None


def main() -> None:
    """Run a part."""
    parts = {"tests": tests, "exact": exact, "accuracy": accuracy, "speed": speed, "repeat": repeat,
             "chain": lambda data, seconds: chain("resnet20", data, seconds, args.rows.parent),
             "resnet18": lambda data, seconds: chain("resnet18", data, seconds, args.rows.parent)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    with args.rows.open("w") as file:
        for row in parts[args.part](args.data, args.seconds):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
