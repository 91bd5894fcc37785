"""Forked ranks that compute on several threads each, as they do wherever OMP_NUM_THREADS is not set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_forked_ranks_of_several_threads_do_not_wait_for_those_of_their_parent(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "flgen.cli", "fit", "--method", "FedAvg", "--model", "SmallCNN"]
    command += ["--trainer.rounds", "1", "--trainer.devices", "2", "--trainer.threads_per_rank", "2"]
    command += ["--model.width", "8", "--method.training.batch_size", "128", "--partition.clients", "2"]
    command += ["--evaluation.personal", "false", "--run_dir", str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate(timeout=180)
        finally:
            process.kill()  # its ranks die with it
    assert process.returncode == 0, said


def test_one_process_on_a_cpu_is_not_forked() -> None:
    from flgen.federation.launch import build_fabric
    from flgen.federation.strategy import RankStrategy

    fabric = build_fabric(
        accelerator="cpu", devices="auto", num_nodes=1, precision="32-true", timeout_s=60, callbacks=[]
    )
    assert fabric.world_size == 1
    assert not isinstance(fabric.strategy, RankStrategy)
