"""A finished run, made once for all tests that only look at one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import DIGITS, QUICK


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on two processes."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    done = subprocess.run(
        [sys.executable, "-m", "flgen.cli", "fit", "--config", DIGITS, *QUICK, "--run_dir", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert f"run folder: {run_dir}" in done.stdout
    return run_dir
