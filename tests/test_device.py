"""The checks of tests/device_checks.py, on a pretended GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="make test-gpu runs them on the GPU that is here")
def test_the_checks_pass_on_a_pretended_gpu():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "device_checks.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout[-6000:]
