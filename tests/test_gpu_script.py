"""benchmarks/gpu.py: a part that crashes or hangs costs its own time, and the others' results are kept."""

import json
import time

import pytest

from benchmarks import gpu

PARTS = '''
import argparse, json, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("part")
for name in ("--data", "--rows", "--seconds"):
    parser.add_argument(name)
args = parser.parse_args()
with open(args.rows, "w") as file:
    print(json.dumps({"found": args.part}), file=file, flush=True)
    if args.part == "exact":
        sys.exit("no such card")
    if args.part == "speed":
        file.write('{"half a li')
        file.flush()
        time.sleep(600)
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "gpu_parts.py").write_text(PARTS)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "GRACE", 0.5)


def test_what_the_others_found_is_kept(parts, tmp_path):
    began = time.monotonic()
    gpu.main(["--minutes", "0.2", "--output", str(tmp_path / "out"), "--part", "exact", "speed", "repeat"])
    assert time.monotonic() - began < 60
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["revision"]
    parts = found["parts"]
    assert parts["exact"]["status"] == "ended with 1: no such card"
    assert parts["speed"]["status"].startswith("ended after")
    assert parts["repeat"]["status"] == "done"
    assert {name: part["rows"] for name, part in parts.items()} == {name: [{"found": name}] for name in parts}
