"""The scripts that measure on a GPU, run where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from forked_commands import run_forked

SCRIPTS = Path(__file__).parent / "benchmarks"
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one of them as a shell would, and return what came of it."""
    command = ["bash", str(SCRIPTS / name), *options]
    return subprocess.run(command, env={**os.environ, **NO_GPU}, capture_output=True, text=True, timeout=180)


def run_program(name: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program of one of them in a folder, sooner than a shell would, and return what came of it."""
    return run_forked([str(SCRIPTS / name), *options], folder, {**NO_GPU, "PYTHONPATH": str(SCRIPTS)}, 180)
