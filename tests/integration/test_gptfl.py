"""GPT-FL from end to end, offline: `configs/gptfl_digits.yaml` with its own stages, smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_commands import run_forked

CONFIG = Path(__file__).parents[2] / "configs" / "gptfl_digits.yaml"


def smaller() -> dict[str, Any]:
    """The configuration with seconds of work in each stage, and every connection between stages as it is."""
    plan = yaml.safe_load(CONFIG.read_text())
    stages = plan["stages"]
    stages["generator"]["config"]["steps"] = 30
    stages["synthetic"]["config"]["per_class"] = 4
    stages["synthetic"]["config"]["synthesizer"]["init_args"]["steps"] = 2
    stages["synthetic_only"]["config"]["trainer"]["epochs"] = 2
    for stage in stages.values():
        if stage["command"] == "fit":
            stage["config"]["trainer"]["rounds"] = 2
            stage["config"]["seeds"] = [0]
    return plan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptfl")
    (folder / "plan.yaml").write_text(yaml.safe_dump(smaller()))
    done = run_forked(["pipeline", "--config", "plan.yaml", "--run_dir", str(folder / "run")], folder, timeout_s=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def stage(run: Path, name: str) -> Path:
    (folder,) = run.glob(f"{name}-????????????")
    return folder


def test_every_stage_is_done(run) -> None:
    assert len(list(run.glob("*/done.json"))) == len(smaller()["stages"])


def test_the_server_learns_the_labels_and_not_who_has_them(run) -> None:
    report = json.loads((stage(run, "labels") / "labels.json").read_text())
    assert report["labels"] == list("0123456789")
    assert report["complete"]
    assert report["count_mode"] == "blind"


def test_samples_are_made_of_the_prompts_of_the_labels(run) -> None:
    made = [json.loads(line) for line in (stage(run, "synthetic") / "samples" / "manifest.jsonl").open()]
    assert len(made) == 10 * 4
    assert (stage(run, "synthetic") / "samples" / "contact-sheet.png").is_file()
    prompts = [json.loads(line) for line in (stage(run, "prompts") / "prompts.jsonl").open()]
    assert {prompt["label"] for prompt in prompts} == set("0123456789")


def test_the_federation_begins_with_what_the_server_trained(run) -> None:
    events = (stage(run, "gptfl") / "run" / "seed-0" / "events.jsonl").read_text().splitlines()
    weights = stage(run, "synthetic_only") / "run" / "final.safetensors"
    assert json.loads(events[0])["initial_weights"] == str(weights)


def test_the_server_of_the_federation_saw_masked_sums_alone(run) -> None:
    phases = {
        line.split(",")[1]
        for line in (stage(run, "gptfl") / "run" / "seed-0" / "ledger.csv").read_text().splitlines()[1:]
    }
    assert {"keys", "shares", "upload", "unmask"} <= phases


def test_the_summary_compares_what_the_stages_reached(run) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"synthetic_only", "gptfl", "from_scratch", "isolated"}
    assert all(0 <= metrics["test/accuracy"] <= 1 for metrics in summary.values())
