"""The real command line, in real processes: what a user types, what is printed, what the run folder holds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events, read_ledger, read_metrics

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
DIGITS = str(CONFIGS / "prism_digits.yaml")
QUICK = (
    "--trainer.rounds=2",
    "--method.local_steps=2",
    "--method.batch_size=8",
    "--method.recalibration_batches=2",
    "--model.latent=8",
    "--model.width=8",
    "--model.loss.real_batch=8",
    "--evaluation.images=32",
)

Flgen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
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


def test_a_fit_leaves_the_run_folder_of_the_documentation(finished: Path) -> None:
    rows = read_metrics(finished / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2]
    for kind in ("stochastic", "sampled_once", "threshold"):
        for metric in ("fid", "kid", "prdc/precision", "prdc/recall", "prdc/density", "prdc/coverage"):
            assert isinstance(rows[-1][f"test/{kind}/{metric}/digits"], float)
    assert rows[-1]["fid/digits"] == rows[-1]["test/sampled_once/fid/digits"]
    phases = [(row["round"], row["phase"], row["link"]) for row in read_ledger(finished / "ledger.csv")]
    assert phases == [
        (t, phase, link)
        for t in (1, 2)
        for phase, link in (("download", "server->client"), ("upload", "client->server"))
    ]
    assert [event["event"] for event in read_events(finished / "events.jsonl")] == ["start", "checkpoint", "end"]
    assert {path.name for path in (finished / "samples").iterdir()} == {"round-00001.png", "round-00002.png"}
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"round-00002"}
    assert not list(finished.glob(".*"))


def test_the_written_configuration_repeats_the_run(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    text = (finished / "config.yaml").read_text()
    assert "mada_space: theta" in text  # presets are spelt out
    again = flgen("fit", "--config", str(finished / "config.yaml"), "--run_dir", "again", "--trainer.devices", "1")
    assert again.returncode == 0, again.stderr
    states = [
        find_checkpoint(run / "checkpoints" / "last").server_state()["method"]["scores"]
        for run in (finished, tmp_path / "again")
    ]
    assert torch.equal(*states)


def test_evaluate_measures_the_checkpoint_as_the_fit_did(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    done = flgen("evaluate", "--ckpt_path", str(finished / "checkpoints" / "last"), "--output", "metrics.json")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "metrics.json").read_text())
    logged = read_metrics(finished / "metrics.csv")[-1]
    assert measured["fid/digits"] == logged["fid/digits"]
    assert f"fid/digits {measured['fid/digits']:.6g}" in done.stdout


def test_sample_draws_a_grid_of_any_kind(finished: Path, flgen: Flgen, tmp_path: Path) -> None:
    from PIL import Image

    for extra in ((), ("--kind", "threshold")):
        checkpoint = str(finished / "checkpoints" / "round-00002")
        done = flgen("sample", "--ckpt_path", checkpoint, "--num", "10", "--output", "out/grid.png", *extra)
        assert done.returncode == 0, done.stderr
        assert Image.open(tmp_path / "out" / "grid.png").size >= (256, 100)
    wrong = flgen("sample", "--ckpt_path", checkpoint, "--kind", "soft")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "flgen: error: --kind soft: this method draws sampled_once, stochastic, threshold\n",
    )


def test_partition_writes_shards_that_fit_reads_with_the_same_result(flgen: Flgen, tmp_path: Path) -> None:
    stored = flgen("partition", "--config", DIGITS, "--output", "shards", "--plot", "chart.png")
    assert stored.returncode == 0, stored.stderr
    assert (tmp_path / "shards" / "index.json").is_file()
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    runs = {
        "direct": (),
        "stored": ("--data=ClientShards", "--data.root=shards", "--partition=AsStored"),
    }
    for name, data in runs.items():
        done = flgen("fit", "--config", DIGITS, *QUICK, *data, "--run_dir", name, "--trainer.devices=1")
        assert done.returncode == 0, done.stderr
    direct, again = (find_checkpoint(tmp_path / name / "checkpoints" / "last").server_state() for name in runs)
    assert torch.equal(direct["method"]["scores"], again["method"]["scores"])
    refused = flgen("partition", "--config", DIGITS, "--output", "shards")
    assert refused.returncode == 1  # a folder that is there is never overwritten
    assert refused.stderr.count("\n") == 1
    assert "shards" in refused.stderr


def test_loggers_get_metrics_and_images_without_a_network(flgen: Flgen, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = ("--loggers+=WandbLogger", "--loggers.init_args.offline=true", "--loggers+=TensorBoardLogger")
    done = flgen("fit", "--config", DIGITS, *QUICK, *loggers, "--run_dir", "run", WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    (wandb_run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(list(wandb_run.rglob("samples*.png"))) == 2
    assert next(wandb_run.glob("*.wandb")).stat().st_size > 1000
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("fid/digits")]
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [step for step, _ in logged] == [1, 2]
    assert logged[-1][1] == pytest.approx(rows[-1]["fid/digits"])
    assert [image.step for image in events.Images("samples")] == [1, 2]


def test_the_vgg_loss_trains_from_a_file_of_weights(flgen: Flgen, tmp_path: Path) -> None:
    from torchvision.models import vgg19_bn

    torch.save(vgg19_bn(num_classes=2).state_dict(), tmp_path / "vgg.pth")
    loss = ("--model.loss=VggMoments", "--model.loss.weights=vgg.pth", "--model.loss.mode=train")
    small = [option for option in QUICK if "real_batch" not in option and "rounds" not in option]
    sizes = ("--data.image_size=16", "--partition.clients=2", "--trainer.rounds=1", "--evaluation.extractors=[]")
    done = flgen("fit", "--config", DIGITS, *small, *loss, *sizes, "--run_dir", "run")
    assert done.returncode == 0, done.stderr
    (state, _) = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").client_states().values()
    assert int(state["v_step"]) == 2  # the moving average took its two steps and stays with the client
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["train/distance"] > 0


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_parses(config: str, flgen: Flgen) -> None:
    shown = flgen("fit", "--config", str(CONFIGS / config), "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert "run_dir: runs/" + config.removesuffix(".yaml") in shown.stdout


# ---- failures: one line each, what and where and what to do -----------------------------------------------------

MISTAKES = {
    "unknown key": (
        ("--trainer.rouns=3",),
        2,
        r"--trainer.rouns: there is no such option; did you mean trainer.rounds\?",
    ),
    "unknown init_arg": (("--method.local_stps=3",), 2, r"--method.local_stps: .* did you mean local_steps\?"),
    "wrong type": (("--trainer.rounds=many",), 2, r"--trainer.rounds: many is not of type int"),
    "wrong class": (("--method=Prysm",), 2, r"--method Prysm: there is no such class; did you mean Prism\?"),
    "missing file": (("--config=nowhere.yaml",), 2, r"nowhere.yaml: there is no such file"),
    "missing data": (("--data=MNIST", "--data.root=nowhere", "--model.image_size=32"), 1, r"nowhere.*--data.root"),
    "missing weights": (
        ("--data.image_size=16", "--model.image_size=16", "--model.loss=VggMoments", "--model.loss.weights=no.pth"),
        1,
        r"no.pth.*--model.loss.weights",
    ),
    "unknown extractor": (("--evaluation.extractors=[digit]",), 2, r"digit.*did you mean 'digits'\?"),
    "too many clients": (("--partition.clients=2000",), 2, r"--partition.clients.* 2000 .*1438"),
    "too many processes": (("--trainer.devices=11",), 2, r"11 processes for 10 clients.*--trainer.devices"),
    "cohort too large": (("--trainer.clients_per_round=11",), 2, r"--trainer.clients_per_round is 11: give 1 to 10"),
    "unwritable run folder": (("--run_dir=/proc/flgen/run",), 1, r"/proc/flgen/run cannot be written.*--run_dir"),
    "no checkpoint": (("--ckpt_path=last",), 1, r"no usable checkpoint in .*--ckpt_path"),
    "not a checkpoint": (("--ckpt_path=.",), 1, r"is not a checkpoint.*runs/x/checkpoints/last"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name: str, flgen: Flgen, tmp_path: Path) -> None:
    arguments, status, pattern = MISTAKES[name]
    done = flgen("fit", "--config", DIGITS, "--run_dir=run", *arguments)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("flgen: training", "flgen: extractor"))]
    assert len(lines) == 1, done.stderr
    assert re.search(pattern, lines[0]), lines[0]
    assert lines[0].startswith("flgen: error: ")
    assert done.returncode == status
    assert not (tmp_path / "run").exists()


def test_an_existing_run_folder_is_not_overwritten(finished: Path, flgen: Flgen) -> None:
    before = (finished / "metrics.csv").read_bytes()
    done = flgen("fit", "--config", DIGITS, *QUICK, "--run_dir", str(finished))
    assert done.returncode == 1
    assert done.stderr == (
        f"flgen: error: run folder {finished} already exists: continue it with --ckpt_path last, or choose another "
        "--run_dir\n"
    )
    assert (finished / "metrics.csv").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_by_last(
    finished: Path, flgen: Flgen, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    server = run / "checkpoints" / "round-00002" / "server.pt"
    server.write_bytes(server.read_bytes()[:-100])
    for name, message in (("round-00002", "is damaged: server.pt"), ("last", "no usable checkpoint")):
        done = flgen("sample", "--ckpt_path", str(run / "checkpoints" / name))
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]


# ---- signals and deaths -------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a fit that would take long, wait for its second round, and see to it that nothing of it is left."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flgen.cli", "fit", "--config", DIGITS, *QUICK, "--trainer.rounds=1000"]
        slow = ("--method.local_steps=20", "--evaluation.extractors=[]", "--evaluation.every=1000", "--run_dir=run")
        process = subprocess.Popen(
            [*command, *slow, "--trainer.checkpoint_every=1", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoints" / "round-00002").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no second round in a minute"
            time.sleep(0.05)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_stop_signal_checkpoints_and_the_run_goes_on_as_if_nothing_had_happened(
    number: signal.Signals, devices: int, start: Any, flgen: Flgen, tmp_path: Path
) -> None:
    process = start(f"--trainer.devices={devices}")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number, stderr
    stopped = int(re.search(r"stopped after round (\d+); continue with", stderr).group(1))  # type: ignore[union-attr]
    assert "Traceback" not in stderr
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == stopped
    assert read_events(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"

    more = ("--trainer.checkpoint_every=1", "--method.local_steps=20", "--evaluation.extractors=[]")
    rounds = f"--trainer.rounds={stopped + 1}"
    for arguments in (("--run_dir=run", "--ckpt_path=last"), ("--run_dir=whole",)):
        done = flgen("fit", "--config", DIGITS, *QUICK, *more, rounds, "--trainer.devices=2", *arguments)
        assert done.returncode == 0, done.stderr
    resumed, whole = (find_checkpoint(tmp_path / run / "checkpoints" / "last") for run in ("run", "whole"))
    assert resumed.round == whole.round == stopped + 1
    assert torch.equal(resumed.server_state()["method"]["scores"], whole.server_state()["method"]["scores"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_last_checkpoint_resumes(
    victim: int, start: Any, flgen: Flgen, tmp_path: Path
) -> None:
    process = start("--trainer.devices=2")
    ranks = [pid for pid in children(process) if alive(pid)]
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert process.returncode == 1
    assert "was killed by SIGKILL; continue from the last checkpoint with --ckpt_path last" in stderr
    assert "Traceback" not in stderr
    assert not any(alive(pid) for pid in ranks)

    good = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round
    rounds = f"--trainer.rounds={good + 1}"
    done = flgen(
        "fit", "--config", DIGITS, *QUICK, rounds, "--run_dir=run", "--ckpt_path=last", "--method.local_steps=20"
    )
    assert done.returncode == 0, done.stderr
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == good + 1


def test_a_killed_command_takes_its_ranks_with_it(start: Any) -> None:
    process = start("--trainer.devices=2")
    ranks = children(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in ranks):
        assert time.monotonic() < deadline, "a rank outlived the command"
        time.sleep(0.1)
