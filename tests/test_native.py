"""The passes in C++ compute what the Python functions do, bit by bit; their library is built once and loaded from a safe place."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant import compiled
from snn_layers.analysis import tally
from snn_layers.deployment.fused import fire, fire_levels, fire_steps, neuron_constants
from snn_layers.native import calls, library

CHANNELS = (1, 3, 16, 64, 100, 300, 1000)  # from many rows to a part of a row in one part of a plane


def terms(steps: int, channels: int, count: int) -> tuple[Tensor, list[Tensor | None]]:
    """Return accumulators [T, N, C] and `count` further terms, of several types; at least None."""
    rows, draw = max(3, 3000 // channels), torch.Generator().manual_seed(channels)
    accumulator = torch.randint(-60, 60, (steps, rows, channels), generator=draw).float()
    more = [torch.randint(0, 3, (steps, rows, channels), generator=draw, dtype=torch.uint8),
            torch.randn(steps, rows, channels, generator=draw), torch.ones(steps, rows, channels, dtype=torch.int16)]
    return accumulator, more[:count] or [None]


def float64(channels: int, *values: float) -> Tensor:
    """Return θ, bias, factor and retraction [4, 1, C]."""
    return torch.tensor(values, dtype=torch.float64).view(4, 1, 1).expand(-1, -1, channels).clone()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_pairs_fire_as_in_python(steps, channels):
    draw = torch.Generator().manual_seed(steps)
    scale, threshold = 0.001 + 0.01 * torch.rand(channels, generator=draw).double(), torch.full((channels,), 0.3).double()
    values = 0.05 * torch.randn(4, channels, generator=draw).double()
    constants = neuron_constants(scale, threshold, *values[:2], torch.full((channels,), 200.0), steps, *values[2:])
    for signed, delay, count in ((True, 0, 0), (False, 0, 1), (True, 1, 1), (True, steps, 2), (True, 0, 3), (False, 1, 0)):
        accumulator, (second, *others) = terms(steps, channels, count)
        given = (accumulator, second, constants[:4 + max(count - 1, 0)], steps, signed, delay, 1, torch.uint8, 0.5, *others)
        expected = fire(*given)
        assert torch.equal(calls.fire(*given), expected)
        assert 0 < (expected != 1).float().mean() < 1


@pytest.mark.parametrize("channels", CHANNELS)
def test_float64_fires_as_in_python(channels):
    """A current that is constant over time, BN of each time step, and levels."""
    draw = torch.Generator().manual_seed(1)
    for count in range(4):
        accumulator, (second, *others) = terms(5, channels, count)
        constants, currents = float64(channels, 0.3, 0.01, 0, -1e-3), 0.02 * torch.randn(5, 5, channels, generator=draw).double()
        steps = (accumulator, second, currents[:2 + max(count, 1)], constants, 5, True, count % 2, 0, torch.float32, 0.0, *others)
        assert torch.equal(calls.fire_steps(*steps), fire_steps(*steps))
        first = [None if term is None else term[:1] for term in (second, *others)]
        levels = (accumulator[:1], first[0], currents[:2 + max(count, 1), :1], constants[..., :1], 7, 1, torch.uint8, *first[1:])
        assert torch.equal(calls.fire_levels(*levels), fire_levels(*levels))
    encoded = (0.01 * accumulator[:1].double(), None, constants[..., :1], 5, False, 2, 0, torch.float64)
    assert torch.equal(calls.fire(*encoded), fire(*encoded))


def test_levels_round_half_to_even():
    current = torch.tensor([-1, 0.5, 1.5, 2.5, 2.51, 9]).double().view(1, -1, 1)
    currents = torch.tensor([1.0, 0.0, 0.0]).double().view(3, 1, 1)
    levels = calls.fire_levels(current, None, currents, float64(1, 1, 0, 0, 0), 3, 0, torch.uint8)
    assert levels.flatten().tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize(("kind", "zero"), [(torch.uint8, 1), (torch.float32, 0)])
def test_statistics_are_those_of_python(kind, zero):
    draw = torch.Generator().manual_seed(0)
    spikes = (torch.randint(-1, 2, (3, 70, 10), generator=draw) + zero).to(kind)
    values = torch.randint(0, 4, (1, 70, 10), generator=draw, dtype=torch.uint8)
    given = spikes, values, torch.tensor([0.1, 0.3]), zero, 0
    assert torch.allclose(calls.tally(*given), tally(*given), rtol=1e-6)


@pytest.mark.parametrize("accumulator", [torch.empty(3, 4, 5, device="meta"), torch.ones(3, 4, 5, dtype=torch.bfloat16),
                                         torch.ones(3, 4, 5, requires_grad=True), torch.ones(3, 0, 5)])
def test_what_the_library_cannot_take_is_left_to_the_caller(accumulator):
    constants = torch.ones(4, 2, 5)
    assert calls.fire(accumulator, None, constants, 3, True, 0, 0, torch.float32) is None
    assert calls.fire(torch.ones(3, 4, 5), None, constants, 3, True, 0, 0, torch.bfloat16) is None
    assert calls.fire(torch.ones(3, 4, 5), None, constants, 3, True, 0, 0, torch.float32) is not None


def test_memory_in_another_order_is_read_right():
    constants = torch.tensor([3.0, 0.0, 0.0, -1e-3]).view(4, 1, 1) * torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(4, 2, 5)
    accumulator = torch.arange(60.0).view(3, 5, 4).mT / 20
    given = (accumulator, None, constants, 3, True, 0, 0, torch.float32)
    assert torch.equal(calls.fire(*given), fire(*given))


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """Return a source file; libraries have an empty directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "seven.cpp"
    path.write_text('extern "C" int number() { return 7; }')
    return path


def fresh(source: Path) -> ctypes.CDLL | None:
    """Return the library as a new process gets it."""
    return library.library.__wrapped__(source)


def test_a_library_is_built_once(source, monkeypatch):
    assert fresh(source).number() == 7
    folder = source.parent / "fast-snn"
    file, = folder.iterdir()
    assert (file.suffix, file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (".so", 0o600, 0o700)
    monkeypatch.setattr(library, "build", None)
    assert fresh(source).number() == 7


@pytest.mark.parametrize("change", ["source", "header", "processor"])
def test_what_went_into_a_library_names_it(source, change, monkeypatch):
    before = library.library_path(source)
    assert library.library_path(source) == before
    if change == "source":
        source.write_text('extern "C" int number() { return 8; }')
    elif change == "header":
        source.with_suffix(".hpp").write_text("int eight();")
    else:
        monkeypatch.setattr(library, "processor", lambda: "another one")
    assert library.library_path(source) != before


def test_what_others_may_write_is_not_loaded(source, monkeypatch):
    built, build = [], library.build
    monkeypatch.setattr(library, "build", lambda *given: (built.append(given), build(*given)))
    assert fresh(source).number() == 7
    file, = (source.parent / "fast-snn").iterdir()
    file.chmod(0o620)
    assert fresh(source).number() == 7
    assert len(built) == 2
    file.symlink_to(file.rename(file.with_suffix(".old")))
    assert fresh(source).number() == 7
    assert len(built) == 3
    file.parent.chmod(0o770)
    assert fresh(source) is None


def test_what_another_user_owns_is_not_loaded(source, monkeypatch):
    assert fresh(source).number() == 7
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert fresh(source) is None


@pytest.mark.parametrize("place", ["no compiler", "no directory", "no C++"])
def test_without_a_library_the_passes_run_in_python(source, place, monkeypatch):
    if place == "no compiler":
        monkeypatch.setenv("CXX", str(source.parent / "missing"))
    elif place == "no directory":
        monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    else:
        source.write_text("not C++")
    assert fresh(source) is None


def test_a_missing_library_is_no_error(monkeypatch):
    monkeypatch.setattr(calls, "library", lambda source: None)
    assert calls.tally(torch.ones(3, 4, 5), torch.ones(1, 4, 5), torch.ones(2), 0, 0) is None


def test_one_function_has_one_compiled_version():
    assert compiled(fire) is compiled(fire)
