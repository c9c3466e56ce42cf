"""A package computes its function, the next process finds it on the disk, and one that others may write is not loaded."""

import importlib
import os
import sys

import pytest
import torch

from quant import packaged as door
from quant.compiled import sources
from quant.packaged import Packaged, built_together, forget_unused, package_path, private, specification
from snn_layers.analysis import tally


def shifted(x: torch.Tensor, up: bool, other: torch.Tensor | None, *more: torch.Tensor) -> torch.Tensor:
    for tensor in (other, *more):
        x = x if tensor is None else x + tensor.to(x.dtype)
    return torch.stack([row + 1 if up else row - 1 for row in x])


def arguments(rows: int, columns: int) -> tuple:
    return torch.randn(3, rows, columns), True, torch.randint(0, 9, (3, rows, columns), dtype=torch.int8), torch.ones(1, columns)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a directory for packages, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fast-snn"


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Return what is built and loaded, in order; neither does anything."""
    made = []

    def build(function, args, path):
        made.append("build")
        path.touch(0o600)
        path.chmod(0o600)

    def load(path):
        made.append("load")
        return lambda *tensors: "package"

    module = sys.modules["quant.packaged"]  # quant.packaged is also a function's name
    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(module, "compiled", lambda function: lambda *args: "compiled")
    return made


def test_a_package_computes_the_function_for_any_size_and_is_found_again(cache, monkeypatch):
    """A damaged package, which is there before the first call, is built anew."""
    first, args = Packaged(shifted), arguments(5, 7)
    cache.mkdir(mode=0o700)
    path = package_path(shifted, specification(args))
    path.write_bytes(b"PK\x03\x04 and no more")
    path.chmod(0o600)
    assert torch.equal(first(*args), shifted(*args))
    file, = cache.iterdir()
    os.utime(file, (0, 0))
    assert torch.equal(Packaged(shifted)(*args), shifted(*args))
    (cache / "other-function.pt2").touch()
    os.utime(cache / "other-function.pt2", (0, 0))
    forget_unused(cache)
    assert list(cache.iterdir()) == [file]  # it was loaded just now
    assert (file.suffix, file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (".pt2", 0o600, 0o700)
    monkeypatch.setattr(sys.modules["quant.packaged"], "build", None)
    second = Packaged(shifted)
    for rows, columns in ((5, 7), (64, 3), (2, 2)):
        args = arguments(rows, columns)
        with torch.inference_mode():
            assert torch.equal(second(*args), shifted(*args))
    assert list(second.versions.values()) != [None]
    assert len(second.versions) == 1


def test_what_is_missing_is_built_in_other_processes_and_used(cache, monkeypatch):
    args, found = (torch.ones(2, 5, 7, dtype=torch.uint8), torch.ones(1, 5, 7), torch.ones(2), 1, 0), []
    monkeypatch.setattr(sys.modules["quant.packaged"], "build", None)  # nothing is built in this process
    built_together([tally], lambda: found.append(door(tally)(*args)))
    assert [file.suffix for file in cache.iterdir()] == [".pt2"]
    assert [value.tolist() for value in found] == [tally(*args).tolist()] * 2  # as it is, then from the package
    built_together([tally], lambda: found.append(door(tally)(*args)))
    assert len(found) == 3


def test_what_others_may_write_is_not_loaded(cache, calls):
    args = arguments(5, 7)
    assert Packaged(shifted)(*args) == Packaged(shifted)(*args) == "package"
    assert calls == ["build", "load", "load"]
    file, = cache.iterdir()
    file.chmod(0o620)
    assert Packaged(shifted)(*args) == "package"
    assert calls[3:] == ["build", "load"]
    target = file.rename(cache / "elsewhere")
    file.symlink_to(target)
    Packaged(shifted)(*args)
    assert calls[5:] == ["build", "load"]
    cache.chmod(0o770)
    assert Packaged(shifted)(*args) == "compiled"
    assert len(calls) == 7


def test_what_another_user_owns_is_not_loaded(cache, calls, monkeypatch):
    Packaged(shifted)(*arguments(5, 7))
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert not private(next(cache.iterdir()))
    assert Packaged(shifted)(*arguments(5, 7)) == "compiled"


def test_without_a_directory_the_function_is_compiled_as_before(tmp_path, calls, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Packaged(shifted)(*arguments(5, 7)) == "compiled"
    assert calls == []


@pytest.mark.parametrize("args", [
    (torch.randn(3, 4, 5).mT, True, None), (torch.empty(3, 4, 5, device="meta"), True, None),
    (torch.randn(3, 5, 4, requires_grad=True), True, None)])
def test_a_package_takes_only_what_it_was_built_for(cache, calls, args):
    """Memory in another order would be misread; gradients and other devices are left to torch.compile."""
    assert Packaged(shifted)(*args) == "compiled"
    assert not cache.exists()


def test_a_version_has_a_name_of_its_own(cache, monkeypatch):
    args = arguments(5, 7)
    others = [(args[0].double(), *args[1:]), (args[0], False, *args[2:]), (args[0][:2], args[1], args[2][:2], args[3]),
              (*args, args[3]), (args[0], True, None), (args[0][:, :1], *args[1:])]
    names = {package_path(shifted, specification(some)) for some in (args, *others)}
    assert len(names) == 7
    assert package_path(shifted, specification(arguments(8, 9))) in names
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert package_path(shifted, specification(args)) not in names
    assert door(shifted) is door(shifted)


def test_an_edited_function_that_another_one_calls_gives_it_another_name(cache, tmp_path, monkeypatch):
    """A package of the old equation would be silently wrong; torch's own files are told by its version."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "caller_of_equation.py").write_text(
        "from torch.nn.functional import relu\n\nfrom edited_equation import twice\n\n"
        "def call(x):\n    return [twice(relu(y)) for y in x]\n")
    equation = tmp_path / "edited_equation.py"
    equation.write_text("def twice(x):\n    return 2 * x\n")
    call = importlib.import_module("caller_of_equation").call
    assert [file.name for file in sources(call)] == ["caller_of_equation.py", "edited_equation.py"]
    before = package_path(call, "")
    assert package_path(call, "") == before
    equation.write_text("def twice(x):\n    return 3 * x\n")
    assert package_path(call, "") != before
