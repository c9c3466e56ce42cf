"""The documents: files that they link to and name exist, commands have known flags. README's length: test_house.py."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT

import dali_main
import main
import report
import reproduce
import snn
import snn_ft

SCRIPTS = {script.__name__: script for script in (main, dali_main, snn, snn_ft, report, reproduce)}

DOCUMENTS = [ROOT / "README.md", *(path for folder in ("docs", "result", "benchmarks") for path in (ROOT / folder).glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_in_the_clone(document):
    missing = [target for target, _ in LINK.findall(document.read_text())
               if ("://" not in target and not (document.parent / target).resolve().is_relative_to(ROOT.resolve()))
               or ("://" not in target and not (document.parent / target).exists())]
    assert missing == []


def test_the_readme_leads_to_every_other_document():
    linked = {(ROOT / target).resolve() for target, _ in LINK.findall((ROOT / "README.md").read_text())}
    beside = {ROOT / "result" / "README.md"}  # seen by all who open the folder
    assert {path.resolve() for path in DOCUMENTS} - linked - {path.resolve() for path in (*beside, ROOT / "README.md")} == set()


def test_files_that_the_readme_names_are_there():
    """Paths in code style, without those that a run makes or a user brings."""
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:models|quant|snn_layers|utils|tests|benchmarks)/[\w/.]*)`", text))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_python_of_the_readme_runs_as_it_stands(tiny, tmp_path, monkeypatch):
    """On 40 images of noise in the place of CIFAR-10."""
    source = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "data").symlink_to(tiny)
    (tmp_path / "result").symlink_to(ROOT / "result")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(source, names)
    assert names["logits"].shape == (40, 10)
    assert len(names["trains"]) == 19
    assert all(train.shape[:2] == (15, 1) for train in names["trains"].values())


COMMANDS = [(document.name, line.strip()) for document in DOCUMENTS for line in document.read_text().splitlines()
            if line.startswith("    python ") and "{" not in line and "..." not in line and " -c " not in line]


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_command_lines_have_flags_that_there_are(document, line, tmp_path, monkeypatch):
    if "mine.py" in line:  # the reader's own
        (tmp_path / "mine.py").touch()
        monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    start = next((index for index, word in enumerate(words) if Path(word).stem in SCRIPTS), None)
    if start is None:  # an example, a benchmark: the parsers of the scripts do not know it
        assert (ROOT / words[1]).is_file() or words[1:3] == ["-m", "pip"]
    else:
        assert SCRIPTS[Path(words[start]).stem].parse(words[start + 1:]) is not None
