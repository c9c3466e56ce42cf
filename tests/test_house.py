"""The house stays small: folders, files and functions that one can read at once."""

import ast
from collections import Counter

from helpers import ROOT

SOURCE = sorted(file for folder in (".", "models", "quant", "snn_layers", "utils", "examples")
                for file in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
FILES, LINES, FUNCTION, README = 9, 220, 70, 150


def functions(text: str) -> dict[str, int]:
    """Return {name at its line: number of lines} of all functions and methods."""
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {f"{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1 for node in found}


def test_a_folder_holds_few_files():
    assert len(SOURCE) > 50
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in SOURCE)
    assert {folder: count for folder, count in counts.items() if count > FILES} == {}


def test_a_file_is_short():
    files = [*SOURCE, *(ROOT / "snn_layers").glob("**/*.[ch]pp")]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > LINES} == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= README


def test_a_function_is_short():
    long = {f"{file.relative_to(ROOT)}:{name}": count for file in SOURCE for name, count in functions(file.read_text()).items()
            if count > FUNCTION}
    assert long == {}
    assert functions("class A:\n    def f(self):\n        return 1\n") == {"f:2": 2}
