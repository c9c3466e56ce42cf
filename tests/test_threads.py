"""Idle threads sleep soon: every script sets this before OpenMP is loaded, unless the user has chosen otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WHEN_TORCH_COMES = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


def spin_count(script: str, **given: str) -> str:
    """Return the spin count in the environment at the moment when a script first imports torch."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))} | given
    command = [sys.executable, "-c", WHEN_TORCH_COMES, script]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("script", ["main", "dali_main", "snn", "snn_ft", "reproduce", "report"])
def test_idle_threads_sleep_soon(script):
    assert spin_count(script) == "5000"


def test_the_users_choice_goes_before_it():
    assert spin_count("main", GOMP_SPINCOUNT="7") == "7"
    assert spin_count("main", OMP_WAIT_POLICY="active") == "None"
