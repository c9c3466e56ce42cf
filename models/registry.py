"""Float networks by name: builders of our own with their published recipes, torchvision's, and a function in a user's file."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from . import plain, resnet
from .errors import reason_of
from .graph.network import Facts, Network, Recipe

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000}
REGISTRY: dict[str, dict[str, tuple[Callable[[int], nn.Module], Recipe]]] = {
    "cifar": {
        "alex": (plain.alex, Recipe(threshold=8.0, fold=True)),
        "vgg11": (plain.vgg11, Recipe(threshold=8.0, fold=True)),
        "vgg16": (plain.vgg16, Recipe()),
        **{f"resnet{n}": (partial(resnet.resnet_cifar, n), Recipe()) for n in (20, 32, 44, 56, 110)},
        "resnet18": (resnet.resnet18, Recipe(hidden=False, ends=False)),
    },
    "imagenet": {
        "alexnet": (plain.alexnet_imagenet, Recipe(hidden=False, fold=True)),
        "vgg16": (plain.vgg16_imagenet, Recipe(hidden=False, fold=True)),
        "vgg11": (plain.vgg11_imagenet, Recipe(hidden=False, threshold=8.0, fold=True)),
    },
}
TORCHVISION = "torchvision:"
ROOT = Path(__file__).resolve().parents[1]  # of this repository


def family(dataset: str) -> str:
    """Return the registry's family for a data set: "imagenet" (224x224 images) or "cifar" (32x32, or those of a folder)."""
    if dataset not in (*CLASSES, "folder"):
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(CLASSES)}, folder")
    return "imagenet" if dataset == "imagenet" else "cifar"


def architectures(dataset: str) -> list[str]:
    """Return the names of our own that `build` knows for a data set."""
    return list(REGISTRY[family(dataset)])


def file_of(arch: str) -> tuple[Path, str] | None:
    """Return the file and the function of FILE.py:FUNCTION; None for another name."""
    file, _, function = arch.rpartition(":")
    return (Path(file), function) if file.endswith(".py") else None


def label(arch: str) -> str:
    """Return an architecture's name as part of a file name."""
    found = file_of(arch)
    return arch.replace(":", "-") if found is None else f"{found[0].stem}-{found[1]}"


def same(arch: str, other: str) -> bool:
    """Return whether two names mean one architecture; a user's file may have moved."""
    return label(arch) == label(other) and (file_of(arch) is None) == (file_of(other) is None)


def recipe(arch: str, dataset: str) -> Recipe:
    """Return the published quantization recipe of an architecture; another architecture gets the usual one.

    Raises:
        ValueError: unknown name, or a file that is not there; nothing is imported.
    """
    known = REGISTRY[family(dataset)]
    if arch in known:
        return known[arch][1]
    if (found := file_of(arch)) is not None:
        if not found[0].is_file():
            raise ValueError(f"{found[0]} does not exist: FILE.py:FUNCTION names a file and a function in it")
        return Recipe()
    if arch.startswith(TORCHVISION):
        from torchvision import models as theirs

        if arch.removeprefix(TORCHVISION) in theirs.list_models(module=theirs):
            return Recipe()
        raise ValueError(f"torchvision has no {arch.removeprefix(TORCHVISION)!r} among its classification networks")
    raise ValueError(f"unknown architecture {arch!r} for {dataset}: choose one of {', '.join(known)}, torchvision:NAME, "
                     "or FILE.py:FUNCTION")


def module(arch: str, dataset: str, num_classes: int) -> nn.Module:
    """Return the module that an architecture's name stands for, freshly initialised.

    The only file that is imported is the one that `arch` names; no checkpoint may choose it.

    Raises:
        ValueError: unknown name, a file without the function, a function that fails or returns no module.
    """
    recipe(arch, dataset)
    if (found := file_of(arch)) is not None:
        return _from_file(*found, num_classes)
    if arch.startswith(TORCHVISION):
        from torchvision import models as theirs

        name = arch.removeprefix(TORCHVISION)
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return theirs.get_model(name, weights=None, num_classes=num_classes, **options)
    return REGISTRY[family(dataset)][arch][0](num_classes)


def _from_file(file: Path, function: str, num_classes: int) -> nn.Module:
    make = function_of(file, function)
    with importing(file), failing(f"{file}:{function}(num_classes={num_classes})"):
        found = make(num_classes=num_classes)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{file}:{function} returns an object of type {type(found).__name__}: it should return an nn.Module")
    if any(map(is_lazy, (*found.parameters(), *found.buffers()))):
        raise ValueError(f"{file}:{function} returns lazy layers, whose shapes are not known: call the network on images before, "
                         "as network(torch.zeros(1, 3, 32, 32))")
    return found


def function_of(file: Path, function: str) -> Callable[..., Any]:
    """Run a user's file and return a function of it; only the command line names such files.

    Raises:
        ValueError: the file fails, or has no such function.
    """
    spec = spec_from_file_location(str(file.resolve()), file)  # no other module has this name
    source = sys.modules[spec.name] = module_from_spec(spec)  # where a dataclass looks for the names of its types
    with importing(file), failing(str(file)):
        spec.loader.exec_module(source)
    if not callable(getattr(source, function, None)):
        raise ValueError(f"{file} has no function {function!r}: FILE.py:FUNCTION names one")
    return getattr(source, function)


@contextmanager
def importing(file: Path) -> Iterator[None]:
    """Let a file import its neighbours, also a package of the name of one of ours, as models or utils."""
    folder, path = file.parent.resolve(), list(sys.path)
    hidden = {name: module for name, module in sys.modules.items() if _hides(name.partition(".")[0], folder)}
    names = {name.partition(".")[0] for name in hidden}
    for name in hidden:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in path if not (hidden and Path(entry).resolve() == ROOT))]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry not in (str(folder), *path)), *path]  # the file may add some
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _hides(name: str, folder: Path) -> bool:
    """Return whether a top-level module of ours hides a neighbour of its name in the folder."""
    found = Path(getattr(sys.modules.get(name), "__file__", None) or "").resolve()
    ours = found in (ROOT / f"{name}.py", ROOT / name / "__init__.py") and folder != ROOT
    return ours and ((folder / f"{name}.py").is_file() or (folder / name).is_dir())


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into a ValueError of one line."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{what} fails ({type(error).__name__}: {reason_of(error)})") from error


def build(arch: str, dataset: str = "cifar10", num_classes: int | None = None) -> Network:
    """Return a float network, freshly initialised, that maps [B, 3, 32, 32] (ImageNet: 224) to [B, num_classes].

    Args:
        arch: a name of ours, torchvision:NAME, or FILE.py:FUNCTION, whose FUNCTION(num_classes=...) returns an nn.Module.

    Raises:
        ValueError: unknown architecture or data set, fewer than 1 class, or a network that cannot be converted.
    """
    published = recipe(arch, dataset)
    if num_classes is None and dataset not in CLASSES:
        raise ValueError(f"the classes of {dataset} are not known: pass num_classes")
    num_classes = CLASSES[dataset] if num_classes is None else num_classes
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: at least 1 class is needed")
    return Network(module(arch, dataset, num_classes), Facts(arch, dataset, num_classes, published))
