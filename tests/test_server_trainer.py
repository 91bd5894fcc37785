"""Server training: all ranks on one model, stages that stop and go on, and the file that the next stage takes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_commands import ForkedCommand, run_forked
from safetensors.torch import load_file

from flgen import MNIST, Digits, ServerTrainer, SmallCNN
from flgen.errors import FlgenError, UsageError
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events, read_metrics
from flgen.experiment.weights import file_sha256, load_weights


def pretrain(run_dir: Path, *, seed: int = 3, model: Any = None, **options: Any) -> Any:
    """Train a small network on 20 digits of each class."""
    about = {name: options.pop(name) for name in ("ckpt_path", "initial_weights", "per_class") if name in options}
    torch.manual_seed(seed)
    trainer = ServerTrainer(
        **{
            "epochs": 3,
            "learning_rate": 5e-3,
            "accelerator": "cpu",
            "devices": 1,
            "threads_per_rank": 1,
            "keep_checkpoints": 9,
            **options,
        }
    )
    model = model or SmallCNN(image_size=8, width=4)
    return trainer.fit(model, Digits(), run_dir=run_dir, seed_everything=seed, **{"per_class": 20, **about})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pretrain(tmp_path_factory.mktemp("trained") / "run", epochs=6, learning_rate=1e-2, per_class=100)


def test_it_learns_and_measures_the_test_split_after_the_last_epoch(trained) -> None:
    rows = read_metrics(trained.run_dir / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["test/accuracy"] > 0.7
    assert [row["round"] for row in rows if "test/accuracy" in row] == [6]  # evaluate_every is 10


def test_the_learning_rate_falls_as_half_a_cosine(trained) -> None:
    rates = [row["train/learning_rate"] for row in read_metrics(trained.run_dir / "metrics.csv")]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    expected = []
    for _ in rates:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, rel=1e-9)


def test_the_file_of_weights_says_where_they_come_from(trained) -> None:
    from safetensors import safe_open

    assert trained.sha256 == file_sha256(trained.weights)
    with safe_open(trained.weights, "pt") as file:
        facts = json.loads(file.metadata()["flgen"])
    assert facts == {"init": "random", "samples": "real", "epochs": "6", "data": "digits"}
    end = read_events(trained.run_dir / "events.jsonl")[-1]
    assert (end["event"], end["sha256"]) == ("end", trained.sha256)


def test_two_ranks_train_the_model_that_one_does(tmp_path) -> None:
    options = {"batch_size": 40, "optimizer": "module", "schedule": "constant"}
    one = load_file(pretrain(tmp_path / "one", **options).weights)
    two = load_file(pretrain(tmp_path / "two", devices=2, **options).weights)
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-5), name


def test_weight_decay_reaches_all_parameters(tmp_path) -> None:
    # A tiny learning rate times a huge decay leaves nothing of the gradient: w <- w (1 - eta lambda).
    model = SmallCNN(image_size=8, width=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrain(tmp_path, model=model, epochs=1, batch_size=200, learning_rate=1e-7, weight_decay=5e6, schedule="constant")
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, 0.5 * before[name], atol=1e-6), name


def test_stop_and_go_on_equals_no_stop_bit_for_bit(tmp_path) -> None:
    whole = pretrain(tmp_path / "whole")
    shutil.copytree(whole.run_dir, tmp_path / "stopped")
    for later in ("round-00002", "round-00003"):
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / later)
    (tmp_path / "stopped" / "final.safetensors").unlink()
    resumed = pretrain(tmp_path / "stopped", ckpt_path="last")
    assert resumed.sha256 == whole.sha256
    timed = {"time/epoch_s"}
    kept = [
        [{name: value for name, value in row.items() if name not in timed} for row in read_metrics(run / "metrics.csv")]
        for run in (whole.run_dir, resumed.run_dir)
    ]
    assert kept[0] == kept[1]


def test_a_checkpoint_of_another_seed_is_refused(trained, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"is of another run \(different seed\)"):
        pretrain(tmp_path / "run", seed=4, per_class=100, ckpt_path=str(trained.run_dir / "checkpoints" / "last"))


@pytest.mark.parametrize(
    ("option", "value", "was"), [("weight_decay", 0.1, 0.9), ("learning_rate", 0.1, 0.01), ("batch_size", 8, 32)]
)
def test_a_run_goes_on_only_as_it_was_trained(option, value, was, trained) -> None:
    asked = {"epochs": 7, "learning_rate": 1e-2, "per_class": 100, option: value}
    with pytest.raises(UsageError, match=rf"--trainer\.{option} is {value}, but checkpoint .* was trained with {was}:"):
        pretrain(trained.run_dir, ckpt_path="last", **asked)


def test_a_finished_folder_is_not_overwritten(trained) -> None:
    with pytest.raises(FlgenError, match="already exists: continue it with --ckpt_path last"):
        pretrain(trained.run_dir)


def test_training_starts_from_the_weights_it_is_given(trained, tmp_path) -> None:
    again = pretrain(tmp_path, epochs=1, initial_weights=trained.weights, learning_rate=1e-5)
    assert again.metrics["test/accuracy"] == pytest.approx(trained.metrics["test/accuracy"], abs=0.02)
    start = read_events(again.run_dir / "events.jsonl")[0]
    assert start["init"] == f"{trained.weights} (sha256 {trained.sha256})"


def test_a_loss_that_is_lost_ends_training_in_one_line(tmp_path) -> None:
    with pytest.raises(FlgenError, match=r"^epoch \d: the training loss is not finite: lower --trainer.learning_rate"):
        pretrain(tmp_path, optimizer="module", model=SmallCNN(image_size=8, width=4, learning_rate=1e8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--trainer.epochs is 0: give 1 or more"),
        ({"learning_rate": 0}, "--trainer.learning_rate is 0: give a number above 0"),
        ({"weight_decay": -1}, "--trainer.weight_decay is -1: give 0 or more"),
        ({"timeout_s": 0}, "--trainer.timeout_s is 0: give seconds above 0"),
    ],
)
def test_options_out_of_range_are_one_line(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        ServerTrainer(**options)


def test_more_processes_than_samples_in_a_batch_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--trainer\.batch_size 1 leaves some of 2 processes without samples"):
        pretrain(tmp_path, batch_size=1, devices=2)


def test_more_samples_than_there_are_cannot_be_asked_for(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--per_class is 1000: digits has a class with \d+ training samples"):
        ServerTrainer(epochs=1).fit(SmallCNN(image_size=8), Digits(), per_class=1000, run_dir=tmp_path / "run")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_stop_signal_keeps_what_is_complete_and_a_later_call_goes_on(tmp_path, devices) -> None:
    command = ["pretrain", "--model", "SmallCNN", "--trainer.devices", str(devices)]
    command += ["--run_dir", str(tmp_path / "run"), "--trainer.epochs", "100000", "--trainer.threads_per_rank", "1"]
    process = ForkedCommand(command, tmp_path)
    try:
        deadline = time.monotonic() + 90
        while not list((tmp_path / "run" / "checkpoints").glob("round-*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "continue with flgen pretrain --config" in said.splitlines()[-1]
    kept = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round
    again = [*command[:-4], "--trainer.epochs", str(kept + 1), "--ckpt_path", "last", "--trainer.threads_per_rank", "1"]
    done = run_forked(again, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"weights: {tmp_path}/run/final.safetensors (sha256 ")


def test_a_federated_run_starts_from_the_weights_and_says_which(trained, fit_small, tmp_path) -> None:
    for name, weights in {"run": trained.weights, "scratch": None}.items():
        model = SmallCNN(image_size=8, width=4, learning_rate=0.01)
        fit_small(tmp_path / name, method="FedAvg", rounds=1, model=model, initial_weights=weights)
    reached = {name: read_metrics(tmp_path / name / "metrics.csv")[0]["test/accuracy"] for name in ("run", "scratch")}
    assert reached["run"] > trained.metrics["test/accuracy"] - 0.1 > reached["scratch"]
    start = read_events(tmp_path / "run" / "events.jsonl")[0]
    assert (start["initial_weights"], start["initial_weights_sha256"]) == (str(trained.weights), trained.sha256)


def test_a_federated_run_goes_on_only_from_the_weights_it_began_with(trained, fit_small, tmp_path) -> None:
    fit_small(tmp_path / "run", method="FedAvg", rounds=1, initial_weights=trained.weights)
    with pytest.raises(UsageError, match=r"\(different initial weights\)"):
        fit_small(tmp_path / "run", method="FedAvg", rounds=2, ckpt_path="last")
    fit_small(tmp_path / "run", method="FedAvg", rounds=2, ckpt_path="last", initial_weights=trained.weights)


def test_a_method_that_draws_its_weights_itself_takes_none(trained, fit_small, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"Prism draws its initial weights itself \(its frozen weights are those of"):
        fit_small(tmp_path / "run", initial_weights=trained.weights)


def test_a_model_of_another_size_is_told_by_the_tensor(trained) -> None:
    with pytest.raises(UsageError, match=r"is of another model: 'network"):
        load_weights(SmallCNN(image_size=8, width=5), trained.weights)


def test_images_alone_are_augmented() -> None:
    from flgen.data import LabelledData

    class Numbers(LabelledData):
        noun = "numbers"

    with pytest.raises(UsageError, match=r"--trainer\.augmentation crop_flip is for images"):
        ServerTrainer(augmentation="crop_flip").fit(SmallCNN(image_size=8), Numbers())


def test_a_data_set_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(FlgenError, match=r"--data.root"):
        ServerTrainer(epochs=1).fit(SmallCNN(), MNIST(root=str(tmp_path)), run_dir=tmp_path / "run")
