"""Commands in processes of their own: exit statuses, stop signals, and what a stopped run leaves to go on from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flgen.commands.child_process import run_flgen


def test_the_exit_status_is_that_of_the_command() -> None:
    assert run_flgen(["--version"]) == 0
    assert run_flgen(["fly"]) == 2


def test_sigterm_reaches_the_command_and_the_old_handler_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = tmp_path / "patient"
    patient.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    patient.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(patient))
    before = signal.getsignal(signal.SIGTERM)

    def stop_it() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_it)
    stopper.start()
    started = time.monotonic()
    assert run_flgen(["fit"]) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    patient = tmp_path / "patient"
    here = f"{tmp_path}/pid"
    patient.write_text(f"#!/bin/sh\necho $$ > {here}.partial\nmv {here}.partial {here}\nexec sleep 60\n")
    patient.chmod(0o755)
    code = f"import sys; sys.executable = {str(patient)!r}\n"
    code += "from flgen.commands.child_process import run_flgen; run_flgen(['fit'])"
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
        assert child.exists()
        starter.kill()
        while child.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not child.exists()
