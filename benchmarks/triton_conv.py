"""The spiking convolution on a GPU: is it exact, how fast is it, which tile is best.

    python -m benchmarks.triton_conv                     # shapes, whole networks, then all tiles for some shapes
    python -m benchmarks.triton_conv --no-sweep          # without the tiles
    python -m benchmarks.triton_conv --only 64-64 --steps 3 7 15

One line a shape: spikes that differ from a float64 run; microseconds of the kernel with its default tile, of the same layer in
float (convolution in bfloat16; with BN, ReLU and residual as PyTorch runs them), and of the deployed path without the kernel.
All as CUDA graphs, batch 512, inputs in the L2 cache where they fit.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F

from benchmarks.triton_layers import ODD, SHAPES, THETA, Layer, Shape, candidates
from benchmarks.triton_networks import BATCH, CHECKED, measure_network, microseconds
from snn_layers.functional import integrate_and_fire
from snn_layers.integer import Geometry


def swept(shape: Shape, steps: int, signed: bool, compile_only: bool = False) -> list[tuple[float, tuple]]:
    """Return (microseconds, tile) of all candidates that run, best first."""
    from snn_layers.kernels.convolution import Tile

    layer, found = Layer(shape, steps, signed, BATCH), []
    for candidate in candidates(shape):
        tile = Tile(*candidate)
        try:
            layer.run(tile)
            torch.cuda.synchronize()
            if not compile_only:
                found.append((microseconds(partial(layer.run, tile)), candidate))
        except Exception as error:  # out of shared memory, of registers
            if compile_only:
                continue
            print(f"      {tuple(candidate)}: {type(error).__name__} {str(error)[:80]}")
    return sorted(found)


def prepare(shapes: list[Shape], steps: int, workers: int) -> None:
    """Compile the candidates of all shapes at a time, into Triton's cache."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(swept, shape, steps, True, True) for shape in shapes]:
            try:
                future.result(timeout=300)
            except Exception as error:
                print(f"compiling: {type(error).__name__} {error}")


def guarded(row: dict, fill: Callable[[dict], None]) -> dict:
    """Fill a row; what goes wrong is written into it."""
    try:
        fill(row)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        torch.cuda.synchronize()
    return row


def measure(shape: Shape, steps: int, signed: bool, row: dict) -> None:
    """Fill a row with the spikes that differ from float64, and microseconds."""
    row["differing"] = Layer(shape, steps, signed, CHECKED).differing()
    layer = Layer(shape, steps, signed, BATCH)
    row["default"] = microseconds(layer.run)
    row["conv_bf16"], row["layer_bf16"] = (microseconds(call) for call in layer.float_layer())


def search(shape: Shape, steps: int, signed: bool, row: dict) -> None:
    """Fill a row with all tiles, and with the deployed path that has no kernel."""
    from snn_layers.kernels.convolution import Tile

    row["sweep"] = swept(shape, steps, signed)
    row["best"], best = row["sweep"][0]
    row["differing_best"] = Layer(shape, steps, signed, CHECKED).differing(Tile(*best))
    row["deployed"] = microseconds(Layer(shape, steps, signed, BATCH).deployed())


def measure_encoding(outputs: int, steps: int, row: dict) -> None:
    """Fill a row for the first unit: images float32 [B, 3, 32, 32]."""
    from snn_layers.kernels.encoding import encode_images, pack_encoding

    draw = torch.Generator("cuda").manual_seed(steps)
    images = torch.randn(BATCH, 3, 32, 32, generator=draw, device="cuda")
    weight = torch.randn(outputs, 3, 3, 3, generator=draw, device="cuda", dtype=torch.float64)
    bias = torch.randn(outputs, generator=draw, device="cuda", dtype=torch.float64)
    theta = torch.tensor(THETA, dtype=torch.float64, device="cuda")
    call = partial(encode_images, images, pack_encoding(weight, Geometry(padding=(1, 1))), bias, theta, steps)
    current = F.conv2d(images[:CHECKED].double(), weight, bias, 1, 1)
    expected = integrate_and_fire(current.expand(steps, *current.shape), theta)
    row["differing"] = int((call().unflatten(0, (steps, -1))[:, :CHECKED] != expected).sum())
    row["default"] = microseconds(call)
    row["conv_f64"] = microseconds(lambda: F.conv2d(images.double(), weight, bias, 1, 1))
    half = images.bfloat16().contiguous(memory_format=torch.channels_last), weight.bfloat16()
    row["conv_bf16"] = microseconds(lambda: F.conv2d(*half, None, 1, 1))


def line(row: dict) -> str:
    """Return a row as a line of text."""
    text = f"{row['shape']:<26} T={row['steps']:<2} {'' if row['signed'] else 'unsigned '}"
    names = ("differing", "default", "best", "differing_best", "conv_bf16", "layer_bf16", "deployed", "conv_f64", "eager",
             "eager_bf16")
    text += "  ".join(f"{name} {row[name]:.1f}" if isinstance(row[name], float) else f"{name} {row[name]}"
                      for name in names if name in row)
    text += "".join(f"\n      {time:8.1f} us  {tile}" for time, tile in row.get("sweep", [])[:6])
    return text + (f"  ERROR {row['error']}" if "error" in row else "")


def rows(shapes: list[Shape], steps: list[int], sweep: bool, workers: int) -> Iterator[dict]:
    """Yield the rows of all shapes; each error stays in its row."""
    def row(name: str, count: int, fill: Callable[[dict], None], signed: bool = True) -> dict:
        return guarded({"shape": name, "steps": count, "signed": signed}, fill)

    for shape in shapes:
        for count in steps:
            yield row(shape.name, count, partial(measure, shape, count, True))
        yield row(shape.name, steps[0], partial(measure, shape, steps[0], False), signed=False)
    for name, outputs in (("resnet20 images-16", 16), ("alex images-96", 96)):
        for count in steps:
            yield row(name, count, partial(measure_encoding, outputs, count))
    for arch in ("resnet20", "alex"):
        for bits in (2, 3, 4):
            yield row(f"{arch}, the whole", 2**bits - 1, partial(measure_network, arch, bits))
    if sweep:
        shapes = [shape for shape in shapes if shape.swept]
        prepare(shapes, steps[0], workers)
        for shape in shapes:
            yield row(shape.name, steps[0], partial(search, shape, steps[0], True))


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose name holds it")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 7, 15], help="T")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the search for tiles")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile the tiles of a search")
    parser.add_argument("--json", metavar="FILE", help="write all rows there")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU is here: nothing is measured")
        return []
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {BATCH}, times in microseconds", flush=True)
    found, began = [], time.monotonic()
    shapes = [shape for shape in [*ODD, *SHAPES] if options.only in shape.name]
    for row in rows(shapes, options.steps, not options.no_sweep, options.workers):
        found.append({**row, "seconds": time.monotonic() - began})
        print(f"{time.monotonic() - began:5.0f} s  {line(row)}", flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
