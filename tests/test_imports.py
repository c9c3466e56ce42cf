"""Imports run one way: each place may read from those that stand after it, and no module reads itself through others."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# First what nobody reads, last what reads nobody; places on one line do not read each other. A room may read its own files.
ORDER = (
    {"benchmarks"},
    {"dali_main"},
    {"main", "snn", "snn_ft", "reproduce", "report"},
    {"utils.study", "utils.report"},
    {"utils.training"},
    {"utils.cli", "utils.script"},
    {"utils.parser"},
    {"utils.checkpoints", "utils.data"},
    {"utils.distributed"},
    {"utils.settings"},
    {"utils.config"},
    {"utils.files", "utils.plot"},
    {"utils.errors"},
    {"snn_layers"},
    {"quant"},
    {"models"},
)


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *(file for folder in ("utils", "models", "quant", "snn_layers", "benchmarks")
                                   for file in (ROOT / folder).rglob("*.py"))]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    assert {"main", "utils.cli", "models.graph.network"} <= names.keys()
    return names


def imports(name: str, file: Path, known: set[str]) -> set[str]:
    """Return which of our modules a file reads, also those that it reads within a function."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source for alias in node.names}
    return found & known - {name}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(name, file, set(files)) for name, file in files.items()}


def place(name: str) -> tuple[int, str] | None:
    """Return where a module stands in ORDER; the door of `utils` stands nowhere."""
    return next(((level, spot) for level, spots in enumerate(ORDER) for spot in spots if f"{name}.".startswith(f"{spot}.")), None)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that read each other in a circle; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_module_has_a_place(graph):
    assert [name for name in graph if place(name) is None] == ["utils"]


def test_imports_run_one_way(graph):
    wrong = [(name, read) for name, others in graph.items() for read in others if "utils" not in (name, read)
             if place(name)[1] != place(read)[1] and place(name)[0] >= place(read)[0]]
    assert wrong == []


def test_no_module_reads_itself_over_others(graph):
    # A package's door gathers what its files offer; a file that reads a neighbour does not go through the door.
    assert circle({name: {read for read in others if not name.startswith(f"{read}.")} for name, others in graph.items()}) == []


def test_the_reader_sees_a_wrong_way_and_a_circle(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from ..training.tune import g\n    from . import b\n    return g, b\n")
    read = {"utils.data.b", "utils.training.tune"}
    assert imports("utils.data.a", file, read | {"utils.data.a"}) == read
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
