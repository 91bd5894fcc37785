"""A run folder from somebody else, given to the commands that read one: its digests fit, and still it only says what
ran."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import TIMES, altered, contents_of, outcome, refusal, tried, without_digest
from hypothesis import given
from small_prism import prism_run

from flgen import Digits, FederatedTrainer, Shards
from flgen.callbacks import Evaluation, WandbLogger
from flgen.cli import main
from flgen.errors import FlgenError
from flgen.methods.finished_prism import CheckpointGenerator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile run") / "run"
    prism_run(folder)
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "runs" / "x"))


@pytest.fixture
def checkpoint(copied: Path) -> Path:
    return without_digest(copied / "checkpoints" / "round-00002")


def with_config(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def with_server(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the server's state, and let the manifest vouch for it."""
    state = torch.load(checkpoint / "server.pt", weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, checkpoint / "server.pt")
    content, manifest = (checkpoint / "server.pt").read_bytes(), json.loads((checkpoint / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["name"] == "server.pt":
            entry.update(bytes=len(content), blake2b=hashlib.blake2b(content).hexdigest()[:32])
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def finished(checkpoint: Path) -> Any:
    """Take the generator out of a checkpoint, as `export` and FedKTL do."""
    source = CheckpointGenerator("--ckpt_path", str(checkpoint))
    return source.noise_of_seed, source.ticket()


def test_the_untouched_one_is_taken(checkpoint: Path) -> None:
    assert len(finished(checkpoint)[1].mask) > 0


@pytest.mark.parametrize("section", ["model", "loss", "deeper"])
def test_the_model_of_a_configuration_is_a_module_and_nothing_else(
    section: str, checkpoint: Path, copied: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    command = f"touch '{canary}'"
    for call in (
        {"class_path": "subprocess.Popen", "init_args": {"args": command, "shell": True}},
        {"class_path": "os.system", "init_args": {"command": command}},
        {"class_path": "flgen.commands.child_process.run_flgen", "init_args": {"arguments": ["--version"]}},
    ):

        def change(config: dict[str, Any], call: Any = call) -> None:
            if section == "model":
                config["model"] = call
            else:
                config["model"]["init_args"]["loss" if section == "loss" else "latent"] = call

        shutil.copy(copied / "config.yaml", tmp_path / "kept.yaml")
        with_config(copied, change)
        said = outcome(lambda: finished(checkpoint))
        assert section == "loss" or isinstance(said, FlgenError)  # which an export has no use for
        assert not canary.exists()
        shutil.copy(tmp_path / "kept.yaml", copied / "config.yaml")


@TIMES
def test_any_values_in_the_configuration_of_a_checkpoint(times: int, checkpoint: Path, copied: Path) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    wanted = {name: config[name] for name in ("model", "method", "data")}

    @tried(12 * times)
    @given(altered(wanted))
    def holds(changed: Any) -> None:
        (copied / "config.yaml").write_text(yaml.safe_dump(changed))
        outcome(lambda: CheckpointGenerator("--ckpt_path", str(checkpoint)).network)
        outcome(lambda: CheckpointGenerator("--ckpt_path", str(checkpoint)).noise_of_seed)

    holds()


@TIMES
def test_any_values_in_the_manifest_of_a_checkpoint(times: int, checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    identity = {name: manifest["identity"][name] for name in ("seed", "method", "data")}

    @tried(15 * times)
    @given(altered(identity))
    def holds(changed: Any) -> None:
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "identity": changed}))
        outcome(lambda: CheckpointGenerator("--ckpt_path", str(checkpoint)).network)
        outcome(lambda: CheckpointGenerator("--ckpt_path", str(checkpoint)).origin())

    holds()


def resumed(run_dir: Path) -> Any:
    """Go on with the run for one more round."""
    from small_methods import small_method, small_model

    trainer = FederatedTrainer(rounds=3, accelerator="cpu", devices=1, threads_per_rank=1, callbacks=[])
    return trainer.fit(
        small_method("Prism"),
        small_model("Prism"),
        Digits(part="public"),
        Shards(clients=4),
        evaluation=Evaluation(every=100, images=16, extractors=[]),
        run_dir=run_dir,
        seed_everything=7,
        ckpt_path="last",
    )


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no method": lambda state: state.pop("method") and None,
    "another shape": lambda state: state["method"].update(scores=torch.zeros(3)),
    "another type": lambda state: state["method"].update(scores="x"),
    "no dictionary": lambda state: [1, 2],
    "metrics": lambda state: state.update(metrics=5),
    "ids": lambda state: state.update(logger_ids=7),
    "method": lambda state: state.update(method=[1]),
}


@pytest.mark.parametrize("name", STATES)
def test_a_server_state_of_something_else_is_one_line(name: str, checkpoint: Path, copied: Path) -> None:
    with_server(checkpoint, STATES[name])
    assert "checkpoint" in refusal(lambda: resumed(copied))


def test_the_id_of_a_logger_is_no_path(tmp_path: Path) -> None:
    for id in ("../../x", "..", "/x", "a\nb", "x" * 500, "a b", 5, ["a"]):
        said = refusal(lambda id=id: WandbLogger(offline=True).open(tmp_path / "run", {}, "x", id))  # type: ignore[arg-type]
        assert "as the id of a W&B run" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", ["samples", "metrics.csv", "checkpoints/.round-00003.partial"])
def test_a_run_that_goes_on_writes_and_removes_nothing_elsewhere(link: str, copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "metrics.csv").write_text("round\n")
    path = copied / link
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "metrics.csv" if path.suffix == ".csv" else outside)
    before = contents_of(outside)
    assert f"a link that leads out of it, {link}" in refusal(lambda: resumed(copied))
    assert contents_of(outside) == before


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text('method: "a\\e[2J\\u202e\\nflgen: all is well"\nmodel: SmallCNN\n')
    assert main(["fit", "--config", str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("flgen: error: --method a")
    assert said.count("\n") == 1
    assert said[:-1].isprintable()


def test_a_file_of_a_packages_name_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    """A class of one's own is found there; who works in a folder of somebody else gets no other numpy for that."""
    for name in ("jinja2", "numpy", "yaml", "safetensors"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    (tmp_path / "mine.py").write_text("here = True\n")
    program = "import sys\nfrom flgen.cli import main\nmain(['privacy', '--help'])\nimport jinja2, safetensors, mine\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "canary").exists()


def test_a_configuration_that_is_a_pipe_in_a_run_folder_is_not_waited_for(copied: Path) -> None:
    (copied / "config.yaml").unlink()
    os.mkfifo(copied / "config.yaml")
    assert main(["evaluate", "--ckpt_path", str(copied / "checkpoints" / "last")]) == 1


@TIMES
def test_any_values_in_the_records_of_a_finished_run(times: int, copied: Path) -> None:
    from flgen.commands.finished_runs import is_finished

    config = yaml.safe_load((copied / "config.yaml").read_text())
    events = [json.loads(line) for line in (copied / "events.jsonl").read_text().splitlines()]
    assert is_finished({**config, "trainer": {**config["trainer"], "rounds": 2}}, copied)

    @tried(40 * times)
    @given(altered({"config": config, "events": events}))
    def holds(changed: Any) -> None:
        if isinstance(changed, dict):
            (copied / "config.yaml").write_text(yaml.safe_dump(changed.get("config")))
            lines = changed.get("events")
            lines = lines if isinstance(lines, list) else [lines]
            (copied / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        outcome(lambda: is_finished(config, copied))

    holds()


def test_what_a_run_says_is_text_in_its_report(copied: Path, tmp_path: Path) -> None:
    script = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    (copied / "events.jsonl").write_text(json.dumps({"time": "now", "event": script, "round": 1, "why": script}) + "\n")
    rows = (copied / "metrics.csv").read_text().splitlines()
    (copied / "metrics.csv").write_text("\n".join([f"{rows[0]},{script}", *(f"{row},1" for row in rows[1:])]) + "\n")
    with_config(copied, lambda config: config["data"]["init_args"].update(part=script))
    renamed = copied.rename(copied.with_name("<img src=x onerror=alert(1)>"))
    assert main(["report", str(renamed), "--output", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "alert(1)" in text  # it is shown
    assert "<script>alert" not in text
    assert "<img src=x" not in text
