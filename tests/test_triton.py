"""The kernels of deployed networks: every spike is that of a float64 run, and they compile for GPUs that are not here."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from snn_layers import deploy, to_spiking
from snn_layers.integer import FloatConv, Geometry
from snn_layers.kernels.units import KernelConv, fits_kernel, kernels_run_on

triton = pytest.importorskip("triton", reason="triton is not here: PyTorch's builds for Linux with CUDA bring it")

CASES = ("signed", "unsigned", "stride", "delay", "all steps of delay", "groups", "depthwise", "dilation", "no padding", "start at 0",
         "identity", "identity with groups and delay", "shortcut", "shortcut with delay", "linear", "network signed 0",
         "network unsigned 1")

# channels, channels of the output, height, kernel, stride, T, second source
SHAPES = ((16, 16, 32, 3, 1, 3, 1), (32, 32, 16, 3, 1, 7, 2), (64, 64, 8, 3, 1, 15, 1), (16, 32, 32, 3, 2, 3, 0),
          (96, 256, 32, 3, 2, 3, 0), (384, 384, 8, 3, 1, 15, 0), (4096, 2048, 1, 1, 1, 7, 0))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict]:
    """Return what the kernels did in the interpreter, in a process of its own."""
    done = subprocess.run([sys.executable, "tests/interpreted.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_every_spike_is_that_of_a_float64_run(interpreted, case):
    found = interpreted[case]
    assert found["bytes"]
    assert found["differing"] == 0
    assert 0.05 < found["fired"] / found["spikes"] < 0.6
    signed = case not in ("unsigned", "all steps of delay", "identity with groups and delay", "network unsigned 1")
    assert (found["taken back"] > 0) == signed


def test_the_first_unit_fires_as_in_float64(interpreted):
    cases = [found for name, found in interpreted.items() if name.startswith("encoding")]
    assert len(cases) == 8
    assert all(found["differing"] == 0 and found["bytes"] and found["fired"] > 1000 for found in cases)


def compiled(arch: int, inputs: int, outputs: int, size: int, kernel: int, stride: int, steps: int, source: int):
    """Return the kernel of a unit as the compiler leaves it for a GPU of an architecture."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from snn_layers.kernels.convolution import spiking_convolution_kernel
    from snn_layers.kernels.launch import PITCH, Weights, default_tile

    def weights(inputs: int, kernel: int, stride: int) -> Weights:
        width = -(-inputs * kernel**2 // PITCH) * PITCH
        packed = torch.empty(outputs, width, dtype=torch.int8, device="meta")
        return Weights(packed, (outputs, inputs, kernel, kernel), Geometry((stride,) * 2, (kernel // 2,) * 2))

    window = weights(inputs, kernel, stride).window(size, size)
    height, width = weights(inputs, kernel, stride).output_size(size, size)
    side_window = weights(inputs // 2, 1, 2).window(2 * height, 2 * width)
    tile = default_tile(512 * height * width, outputs, window.size)
    constants = {"height": height, "width": width, "groups": 1, "group_width": outputs, "window": window,
                 "side_window": side_window, "source": source, "tile": tile, "steps": steps, "signed": True, "delay": 0}
    pointers = {"out": "*i8", "spikes": "*i8", "weight": "*i8", "second": "*i8", "side": "*i8", "constants": "*fp32"}
    numbers = dict.fromkeys(("images", "stride", "second_stride", "written_stride"), "i32")
    aligned = [index for index, name in enumerate(pointers | numbers) if name != "images"]
    source_text = ASTSource(spiking_convolution_kernel, pointers | numbers | dict.fromkeys(constants, "constexpr"), constants,
                            {(index,): [["tt.divisibility", 16]] for index in aligned})
    return triton.compile(source_text, target=GPUTarget("cuda", arch, 32),
                          options={"num_warps": tile.warps, "num_stages": tile.stages})


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_compiles_without_a_gpu_for_the_units_of_our_networks(arch, shape):
    kernel = compiled(arch, *shape)
    instruction = {80: "mma.sync.aligned.m16n8k32", 90: "wgmma.mma_async.sync.aligned"}[arch]
    assert any(instruction in line and ".s8.s8" in line for line in kernel.asm["ptx"].splitlines())  # on tensor cores, in bytes
    assert len(kernel.asm["cubin"]) > 1000
    assert kernel.metadata.shared < 100_000  # bytes: two tiles find room in an SM of either


def test_a_unit_that_bytes_do_not_hold_does_not_run_as_a_kernel():
    weight = torch.full((4, 8, 3, 3), 100.0)
    assert fits_kernel([KernelConv(weight, Geometry())], 15)
    assert not fits_kernel([KernelConv(weight + 0.5, Geometry())], 15)
    assert not fits_kernel([KernelConv(weight + 28, Geometry())], 15)
    assert not fits_kernel([KernelConv(weight, Geometry())], 2**24 // 7200 + 1)  # the sum over time passes 2^24
    assert not fits_kernel([KernelConv(weight, Geometry(pads=(1, 1, 1, 1), mode="reflect"))], 15)
    assert not fits_kernel([KernelConv(weight, Geometry()), KernelConv(weight, Geometry(groups=2))], 15)


def test_a_cpu_has_no_kernels(quantized):
    assert not kernels_run_on(torch.device("cpu"))
    network = deploy(to_spiking(quantized), compile=False)
    assert all(site.module.kernel is None for site in network.sites if hasattr(site.module, "kernel"))
    assert not issubclass(network.convolution, FloatConv)
