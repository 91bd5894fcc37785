import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from forked_commands import run_forked
from jsonargparse import ArgumentParser
from PIL import Image
from wandb_file import wandb_files

from flgen.callbacks import RunLogger, TensorBoardLogger, WandbLogger, close_loggers, log_image_grid, run_id
from flgen.callbacks.loggers import grouping_keys
from flgen.errors import FlgenError
from flgen.experiment.records import write_partition

NOBODY_LISTENS_THERE = "http://127.0.0.1:9"

RUNS = """
import json, os, sys
from pathlib import Path
import torch
from flgen.callbacks import WandbLogger, close_loggers, log_image_grid, run_id
from flgen.experiment.records import MetricsTable

def run(folder, first_round, rounds, resume_id=None, exit_code=0, **options):
    folder.mkdir(exist_ok=True)
    config = {"method": {"class_path": "Prism", "rounds": 20}, "run_dir": folder}
    configured = WandbLogger(project="digits", tags=["small"], **options)
    logger = configured.open(folder, config, "first", resume_id, first_round)
    for round in range(first_round, first_round + rounds):
        sent = {"comm/up_bytes": 4100 * round, "comm/bytes": 10}
        logger.log_metrics({"train/loss": 1.0 / round, "test/accuracy": abs(2 - round), **sent}, step=round)
        MetricsTable(folder / "metrics.csv").write(round, {"comm/bytes": 10})
    log_image_grid(logger, "samples", torch.full((1, 6, 9), 77, dtype=torch.uint8), round)
    (folder / f"id-{first_round}").write_text(json.dumps(run_id(logger)))
    close_loggers([logger], exit_code)

def run_forked(*arguments, **options):
    child = os.fork()
    if child == 0:
        run(*arguments, **options)
        os._exit(0)  # as a forked rank leaves: no exit handler runs
    assert os.waitpid(child, 0)[1] == 0

folder = Path(sys.argv[1])
import lightning.pytorch.loggers  # once for all children
run_forked(folder / "forked", 1, 200, offline=True)
identifier = json.loads((folder / "forked" / "id-1").read_text())
run_forked(folder / "forked", 201, 3, resume_id=identifier, exit_code=1, offline=True)
os.environ["WANDB_MODE"] = "disabled"
run_forked(folder / "disabled", 1, 2, offline=True)
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_RUN_GROUP"] = "sweep of today"
run(folder / "direct", 1, 2)
"""


@pytest.fixture(scope="module")
def offline_environment(tmp_path_factory):
    """An environment without a W&B account, in which every connection would fail."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    home = str(tmp_path_factory.mktemp("home"))
    return {
        **kept,
        "HOME": home,
        "WANDB_SILENT": "true",
        "WANDB_BASE_URL": NOBODY_LISTENS_THERE,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def wandb_runs(tmp_path_factory, offline_environment):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "runs.py").write_text(RUNS)
    unset = {name: None for name in os.environ if name not in offline_environment}
    done = run_forked(["runs.py", str(folder)], folder, {**unset, **offline_environment})
    assert done.returncode == 0, done.stderr
    return folder


def test_offline_wandb_keeps_every_row_of_a_forked_process(wandb_runs):
    file, _ = wandb_files(wandb_runs / "forked")
    rows = file.history
    assert [row["round"] for row in rows] == list(range(1, 201))
    assert [row["train/loss"] for row in rows] == [1.0 / round for round in range(1, 201)]
    assert rows[-1]["comm/up_bytes"] == 820_000
    assert file.exit_codes == [0]


def test_offline_wandb_keeps_the_configuration_and_what_the_run_is_called(wandb_runs):
    file, _ = wandb_files(wandb_runs / "forked")
    assert file.config["method"] == {"class_path": "Prism", "rounds": 20}
    assert file.config["run_dir"] == str(wandb_runs / "forked")
    run = file.of_kind("run")[0]
    assert (run.project, run.display_name, list(run.tags)) == ("digits", "first", ["small"])


def test_offline_wandb_keeps_the_image_in_the_row_of_its_round(wandb_runs):
    file, _ = wandb_files(wandb_runs / "forked")
    (row,) = [row for row in file.history if "samples.filenames" in row]
    assert (row["round"], row["train/loss"]) == (200, 1 / 200)
    (name,) = row["samples.filenames"]
    (path,) = (wandb_runs / "forked").glob(f"wandb/*/files/{name}")
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), np.full((6, 9), 77))


def test_wandb_plots_everything_against_the_round(wandb_runs):
    file, _ = wandb_files(wandb_runs / "forked")
    axes = {metric.name or metric.glob_name: metric for metric in file.of_kind("metric")}
    assert axes["*"].step_metric == "round"
    assert "trainer/global_step" not in file.history[0]


def test_a_resumed_run_continues_under_its_id_and_reports_its_failure(wandb_runs):
    before, after = wandb_files(wandb_runs / "forked")
    identifier = json.loads((wandb_runs / "forked" / "id-1").read_text())
    assert json.loads((wandb_runs / "forked" / "id-201").read_text()) == identifier
    assert {file.of_kind("run")[0].run_id for file in (before, after)} == {identifier}
    assert [row["round"] for row in after.history] == [201, 202, 203]
    assert [row["_step"] for row in before.history + after.history] == list(range(1, 204))
    assert after.exit_codes == [1]


def test_the_summary_has_the_best_value_of_a_quality_and_the_last_of_everything(wandb_runs):
    file, _ = wandb_files(wandb_runs / "forked")
    assert file.summary["train/loss"] == {"min": 1 / 200, "last": 1 / 200}
    assert file.summary["test/accuracy"] == {"max": 198, "last": 198}
    assert file.summary["comm/up_bytes"] == 820_000
    (short,) = wandb_files(wandb_runs / "direct")
    assert short.summary["test/accuracy"] == {"max": 1, "last": 0}


def test_bytes_are_summed_over_rounds_and_over_a_resume(wandb_runs):
    before, after = wandb_files(wandb_runs / "forked")
    assert [row["comm/bytes_so_far"] for row in before.history[:3]] == [10, 20, 30]
    assert [row["comm/bytes_so_far"] for row in after.history] == [2010, 2020, 2030]


def test_runs_of_one_group_are_told_apart_by_flat_keys(wandb_runs):
    forked, _ = wandb_files(wandb_runs / "forked")
    (direct,) = wandb_files(wandb_runs / "direct")
    assert forked.config["method_name"] == "Prism"
    assert (forked.of_kind("run")[0].run_group, direct.of_kind("run")[0].run_group) == ("", "sweep of today")


def test_the_flat_keys_have_short_names(tmp_path):
    config = {
        "seed_everything": 3,
        "method": {"class_path": "flgen.FedAvg", "init_args": {}},
        "model": [{"class_path": "flgen.SmallCNN"}, {"class_path": "mine.Net"}, {"class_path": "flgen.SmallCNN"}],
        "data": {"class_path": "flgen.Digits", "init_args": {}},
    }
    found = {"method_name": "FedAvg", "model_name": "SmallCNN+Net", "data_name": "Digits", "seed": 3}
    assert grouping_keys(config, tmp_path) == found
    write_partition(tmp_path / "partition.csv", np.ones((7, 2), dtype=np.int64), ["a", "b"])
    assert grouping_keys(config, tmp_path) == {**found, "clients": 7}


def test_wandb_mode_offline_in_the_environment_is_enough(wandb_runs):
    (file,) = wandb_files(wandb_runs / "direct")
    assert [row["round"] for row in file.history] == [1, 2]
    assert file.exit_codes == [0]


def test_wandb_mode_disabled_writes_nothing_even_where_offline_is_configured(wandb_runs):
    assert sorted(path.name for path in (wandb_runs / "disabled").iterdir()) == ["id-1", "metrics.csv"]
    assert json.loads((wandb_runs / "disabled" / "id-1").read_text()) is None


OPEN = """
import sys
from pathlib import Path
from flgen.callbacks import WandbLogger
from flgen.errors import FlgenError
try:
    WandbLogger().open(Path(sys.argv[1]), {}, "first", None)
except FlgenError as error:
    print(error)
"""


def test_online_wandb_without_a_key_is_one_line_that_says_what_to_do(tmp_path, offline_environment):
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    output = subprocess.run(command, env=offline_environment, capture_output=True, text=True, timeout=60).stdout
    assert output == (
        "W&B cannot start a run: no API key is configured; log in with `wandb login`, or keep the run on disk with "
        "--loggers.init_args.offline true or WANDB_MODE=offline\n"
    )


@pytest.mark.long
def test_online_wandb_without_a_network_is_one_line_that_says_what_to_do(tmp_path, offline_environment):
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    environment = {**offline_environment, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110).stdout
    (line,) = [line for line in output.splitlines() if line.startswith("W&B cannot start a run: ")]
    assert line.endswith("--loggers.init_args.offline true or WANDB_MODE=offline")


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_tensorboard_files_hold_scalars_images_and_the_configuration(tmp_path):
    logger = TensorBoardLogger().open(tmp_path, {"rounds": 20, "run_dir": tmp_path}, "first", None)
    logger.log_metrics({"train/loss": 0.5, "comm/up_bytes": 4100}, step=1)
    logger.log_metrics({"train/loss": 0.25}, step=2)
    log_image_grid(logger, "samples", torch.full((3, 6, 9), 77, dtype=torch.uint8), 2)
    assert run_id(logger) is None
    close_loggers([logger], 0)
    found = events(tmp_path / "tensorboard")
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert found.Scalars("comm/up_bytes")[0].value == 4100
    (image,) = found.Images("samples")
    assert (image.step, image.width, image.height) == (2, 9, 6)
    (config,) = found.Tensors("config/text_summary")
    assert f"rounds: 20\nrun_dir: {tmp_path}\n" in config.tensor_proto.string_val[0].decode()


def test_tensorboard_shows_a_round_once_after_a_resume(tmp_path):
    for first_round in (1, 3):
        logger = TensorBoardLogger().open(tmp_path, {}, "first", None, first_round)
        for round in range(first_round, 5):
            logger.log_metrics({"train/loss": 10.0 * first_round + round}, step=round)
        close_loggers([logger], 1)
    found = events(tmp_path / "tensorboard").Scalars("train/loss")
    assert [(event.step, event.value) for event in found] == [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0)]


def test_tensorboard_runs_can_share_a_folder(tmp_path):
    logger = TensorBoardLogger(save_dir=str(tmp_path / "all")).open(tmp_path / "run", {}, "first", None)
    logger.log_metrics({"train/loss": 0.5}, step=1)
    close_loggers([logger], 0)
    assert events(tmp_path / "all" / "first").Scalars("train/loss")[0].value == 0.5
    assert not (tmp_path / "run").exists()


def test_a_folder_that_tensorboard_cannot_make_is_one_clear_line(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(FlgenError, match=r"TensorBoard cannot write to .*tensorboard"):
        TensorBoardLogger().open(tmp_path, {}, "first", None)


def test_a_logger_without_images_is_left_alone(tmp_path):
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path))
    log_image_grid(logger, "samples", torch.zeros(1, 6, 9, dtype=torch.uint8), 2)
    assert run_id(logger) is None
    logger.log_metrics({"loss": 0.5}, step=1)
    close_loggers([logger], 0)
    assert "0.5" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_the_configuration_names_a_logger_by_its_short_name():
    parser = ArgumentParser()
    parser.add_argument("--loggers", type=list[RunLogger])
    line = ["--loggers+=WandbLogger", "--loggers.init_args.offline=true", "--loggers.init_args.tags=[a, b]"]
    (logger, second) = parser.instantiate_classes(parser.parse_args([*line, "--loggers+=TensorBoardLogger"])).loggers
    assert isinstance(logger, WandbLogger)
    assert (logger.offline, logger.tags, logger.project) == (True, ["a", "b"], None)
    assert isinstance(second, TensorBoardLogger)
