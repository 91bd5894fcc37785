"""`flgen pipeline` with two stages of a second each: order, skipping, going on, and what it says when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_commands import run_forked

PLAN: dict[str, Any] = {
    "stages": {
        "tune": {
            "command": "fit",
            "config": {
                "trainer": {"rounds": 1, "accelerator": "cpu", "callbacks": []},
                "model": {"class_path": "SmallCNN", "init_args": {"width": 4, "learning_rate": 0.01}},
                "method": "FedAvg",
                "partition": {"class_path": "IID", "init_args": {"clients": 4}},
                "initial_weights": "${server}",
            },
        },
        "server": {
            "command": "pretrain",
            "config": {
                "trainer": {"epochs": 1, "learning_rate": 0.01, "accelerator": "cpu"},
                "model": {"class_path": "SmallCNN", "init_args": {"width": 4}},
                "per_class": 50,
            },
        },
    }
}


def typed(folder: Path, plan: dict[str, Any], *more: str) -> list[str]:
    """Write the plan and return what is typed after `flgen` to run it."""
    config = folder / "plan.yaml"
    config.write_text(yaml.safe_dump(plan))
    return ["pipeline", "--config", str(config), "--run_dir", str(folder / "run"), *more]


def pipeline(folder: Path, plan: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    return run_forked(typed(folder, plan, *more), folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished pipeline, which was started from nothing, as were its stages."""
    folder = tmp_path_factory.mktemp("pipeline")
    command = [sys.executable, "-m", "flgen.cli", *typed(folder, PLAN)]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_stages_run_in_the_order_of_their_needs(done) -> None:
    folder, process = done
    assert process.returncode == 0, process.stderr
    started = [line.split(":")[0] for line in process.stdout.splitlines() if line.startswith("stage ")]
    assert started == ["stage server", "stage tune"]
    (stage,) = (folder / "run").glob("tune-*")
    (server,) = (folder / "run").glob("server-*")
    written = yaml.safe_load((stage / "stage.yaml").read_text())
    assert written["initial_weights"] == str(server / "run" / "final.safetensors")
    assert written["seed_everything"] == 0


def test_it_says_what_the_stages_reached(done) -> None:
    folder, process = done
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert set(summary) == {"server", "tune"}
    assert f"tune: test/accuracy {summary['tune']['test/accuracy']:.4f}" in process.stdout


def test_what_is_done_is_not_done_again_and_a_change_reaches_what_needs_it(done) -> None:
    folder, _ = done
    again = pipeline(folder, PLAN)
    assert [line.split(": ")[1].split(" (")[0] for line in again.stdout.splitlines()[:2]] == ["done before"] * 2
    changed = json.loads(json.dumps(PLAN))
    changed["stages"]["tune"]["config"]["model"]["init_args"]["learning_rate"] = 0.02
    process = pipeline(folder, changed, "--only", "[tune]")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("stage tune: flgen fit --config ")
    assert len(list((folder / "run").glob("tune-*"))) == 2


def test_a_stage_that_was_stopped_before_its_first_checkpoint_begins_anew(done, tmp_path) -> None:
    folder, _ = done
    (server,) = (folder / "run").glob("server-*")
    (server / "done.json").unlink()
    for checkpoint in (server / "run" / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    process = pipeline(folder, PLAN)
    assert process.returncode == 0, process.stderr
    assert "stage server: flgen pretrain" in process.stdout


def test_a_stage_that_fails_ends_the_pipeline_with_its_status(tmp_path) -> None:
    plan = json.loads(json.dumps(PLAN))
    plan["stages"]["server"]["config"]["per_class"] = 5000
    process = pipeline(tmp_path, plan)
    assert process.returncode == 2
    assert "--per_class is 5000" in process.stderr
    assert process.stderr.splitlines()[-1] == "flgen: stage server ended with exit status 2; correct its options"
    assert "stage tune" not in process.stdout


def test_a_mistake_in_a_late_stage_is_told_before_the_first_one_runs(tmp_path) -> None:
    plan = json.loads(json.dumps(PLAN))
    plan["stages"]["tune"]["config"]["trainer"]["rouns"] = 3
    process = pipeline(tmp_path, plan)
    assert process.returncode == 2
    assert process.stderr.splitlines() == [
        "flgen: error: --trainer.rouns: there is no such option; did you mean trainer.rounds?",
        "flgen: stage tune cannot run: correct its options",
    ]
    assert process.stdout == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "[fly]"], "--only fly: there are server, tune"),
        (["--only", "[tune]"], "--only tune: it needs stage server, which is not done: add it, or leave out --only"),
    ],
)
def test_what_cannot_run_alone_is_one_line(tmp_path, more, message) -> None:
    process = pipeline(tmp_path, PLAN, *more)
    assert (process.returncode, process.stderr) == (2, f"flgen: error: {message}\n")
