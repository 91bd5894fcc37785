"""The trainer from Python: client errors, bad numbers, callbacks, and what is left when fit returns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flgen import (
    IID,
    Callback,
    Digits,
    Evaluation,
    FedAvg,
    FederatedTrainer,
    LocalSplit,
    LocalTraining,
    Prism,
    SmallCNN,
    Sparsity,
)
from flgen.client_turns import ClientFailed
from flgen.errors import UsageError
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.config import describe
from flgen.experiment.records import read_clients, read_metrics


def test_more_uploads_than_clients_cannot_be_asked_for(fit_small: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--trainer.min_clients is 6: a round has only 5 clients"):
        fit_small(tmp_path / "run", method="FedAvg", on_client_error="skip", min_clients=6)


class ForgetfulFedAvg(FedAvg):
    """Keeps client state although FedAvg said that it keeps none: it would be lost on a stand-in's rank."""

    def client_step(self, client: Any, download: Any, t: int) -> Any:
        client.state = {"rounds": torch.tensor(t)}
        return super().client_step(client, download, t)


def test_state_of_a_method_that_says_it_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientFailed, match=r"keeps state although its method set federation.stateless"):
        FederatedTrainer(rounds=1, accelerator="cpu", devices=1, callbacks=[]).fit(
            ForgetfulFedAvg(),
            SmallCNN(image_size=8, width=2),
            Digits(),
            IID(clients=2),
            evaluation=Evaluation(extractors=[]),
            run_dir=tmp_path / "run",
        )


class Diary(Callback):
    """Counts the hooks that were called."""

    def __init__(self) -> None:
        self.hooks: Counter[str] = Counter()

    def on_fit_start(self, trainer: Any) -> None:
        self.hooks["fit_start"] += 1

    def on_client_start(self, trainer: Any, round: int, client: int) -> None:
        self.hooks["client_start"] += 1

    def on_local_step(self, trainer: Any, round: int, client: int, step: int, steps: int) -> None:
        self.hooks["local_step"] += 1
        assert 1 <= step <= steps

    def on_evaluation_end(self, trainer: Any, round: int, metrics: Any, images: Any) -> None:
        self.hooks["evaluation"] += 1

    def on_round_end(self, trainer: Any, round: int, metrics: Any) -> None:
        self.hooks["round_end"] += 1
        assert metrics["comm/up_bytes"] > 0

    def on_checkpoint(self, trainer: Any, round: int, path: Path) -> None:
        self.hooks["checkpoint"] += 1
        assert path.is_dir()

    def on_fit_end(self, trainer: Any) -> None:
        self.hooks["fit_end"] += 1


def test_callbacks_see_every_moment(fit_small: Any, tmp_path: Path) -> None:
    diary = Diary()
    fit_small(tmp_path / "run", callbacks=[diary], rounds=3, checkpoint_every=2)
    assert diary.hooks == {
        "fit_start": 1,
        "client_start": 15,
        "local_step": 30,
        "evaluation": 2,  # after round 1 and at the end
        "round_end": 3,
        "checkpoint": 2,
        "fit_end": 1,
    }


def test_the_method_holds_the_result_after_a_fit_on_two_processes(tmp_path: Path) -> None:
    method, model = FedAvg(LocalTraining(batch_size=32)), SmallCNN(image_size=8, width=4)
    before = method, [parameter.clone() for parameter in model.parameters()]
    result = FederatedTrainer(rounds=2, accelerator="cpu", devices=2, callbacks=[]).fit(
        method,
        model,
        Digits(),
        IID(clients=4),
        evaluation=Evaluation(extractors=[]),
        run_dir=tmp_path / "run",
    )
    assert result.metrics["test/accuracy"] > 0.1
    saved = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").server_state()["method"]["weights"]
    assert torch.equal(method.w, saved)
    assert not all(torch.equal(a, b) for a, b in zip(before[1], model.parameters(), strict=True))


def test_the_configuration_of_a_fit_from_python_is_the_command_lines(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["method"] == describe(Prism(local_steps=2, batch_size=8, recalibration_batches=2))
    assert config["partition"]["init_args"] == {"clients": 5, "shards_per_client": 4}
    assert config["model"]["init_args"]["loss"]["init_args"]["real_batch"] == 8


def test_data_may_be_used_again_after_they_were_divided(fit_small: Any, tmp_path: Path) -> None:
    data = Digits()
    split = LocalSplit("own", test_fraction=0.3)
    about = {"method": "FedAvg", "rounds": 1, "data": data}
    first = fit_small(tmp_path / "first", split=split, **about)
    common = fit_small(tmp_path / "common", **about)
    again = fit_small(tmp_path / "again", split=split, **about)
    name = "test/pooled/accuracy_aggregated"
    assert first.metrics[name] == again.metrics[name] != common.metrics[name]
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert config["split"] == describe(split)
    assert yaml.safe_load((tmp_path / "common" / "config.yaml").read_text())["split"] == describe(LocalSplit())


def test_a_checkpoint_of_another_division_is_refused(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="FedAvg", rounds=1, split=LocalSplit("own"))
    with pytest.raises(UsageError, match=r"is of another run \(different partition, split\)"):
        fit_small(tmp_path / "run", method="FedAvg", split=LocalSplit("own", test_fraction=0.3), ckpt_path="last")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_sampling_ratio_is_the_same_run_as_its_number_of_clients(
    devices: int, fit_small: Any, tmp_path: Path
) -> None:
    fit_small(tmp_path / "ratio", method="FedAvg", participation=0.4, devices=devices)
    fit_small(tmp_path / "number", method="FedAvg", clients_per_round=2)
    ratio, number = (read_clients(tmp_path / run / "clients.csv") for run in ("ratio", "number"))
    assert ratio == number


def test_a_run_from_python_can_be_measured_by_the_command_line(fit_small: Any, flgen: Any, tmp_path: Path) -> None:
    result = fit_small(tmp_path / "run", method="FedAvg", every=1)
    done = flgen("evaluate", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last"))
    assert done.returncode == 0, done.stderr
    assert f"test/accuracy {result.metrics['test/accuracy']:.6g}" in done.stdout


def test_a_checkpoint_of_another_run_is_refused(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run")
    with pytest.raises(UsageError, match=r"is of another run \(different seed, partition\)"):
        fit_small(tmp_path / "run", seed=8, rounds=3, ckpt_path="last")


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_rewritten(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="DisPFL")
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UsageError, match=r"is of another run \(different model\)"):
        fit_small(tmp_path / "run", method="DisPFL", rounds=3, ckpt_path="last", model=SmallCNN(image_size=8, width=6))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


@pytest.mark.parametrize("devices", [1, 2])
def test_more_rounds_do_not_start_the_annealing_again(devices: int, fit_small: Any, tmp_path: Path) -> None:
    about: dict[str, Any] = {"method": "DisPFL", "method_options": {"sparsity": Sparsity()}, "devices": devices}
    fit_small(tmp_path / "run", rounds=3, **about)
    result = fit_small(tmp_path / "run", rounds=5, ckpt_path="last", **about)
    rates = [row["mask/prune_rate"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert rates == pytest.approx([0.5, 0.375, 0.125, 0.0, 0.0])
    assert result.metrics["mask/drift"] == 0.0


def test_a_resume_with_other_options_keeps_the_old_configuration(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", rounds=1)
    fit_small(tmp_path / "run", rounds=2, ckpt_path="last")
    assert "rounds: 1" in (tmp_path / "run" / "config-until-round-00001.yaml").read_text()
    assert "rounds: 2" in (tmp_path / "run" / "config.yaml").read_text()
    assert [row["round"] for row in read_metrics(tmp_path / "run" / "metrics.csv")] == [1, 2]


def test_only_the_newest_checkpoints_are_kept(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", rounds=4, keep_checkpoints=2)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["round-00003", "round-00004"]


def test_client_state_may_live_in_files(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "memory")
    fit_small(tmp_path / "files", client_state_mb=1e-6)
    memory, files = (find_checkpoint(tmp_path / run / "checkpoints" / "last") for run in ("memory", "files"))
    assert torch.equal(memory.server_state()["method"]["scores"], files.server_state()["method"]["scores"])
    assert not list((tmp_path / "files").glob(".state*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--trainer.rounds is 0"),
        ({"devices": 0}, "--trainer.devices is 0"),
        ({"timeout_s": 0}, "--trainer.timeout_s is 0"),
        ({"min_clients": 0}, "--trainer.min_clients is 0"),
        ({"participation": 0.0}, "--trainer.participation is 0.0: give a share above 0, at most 1"),
        ({"participation": 1.5}, "--trainer.participation is 1.5"),
        (
            {"participation": 0.5, "clients_per_round": 3},
            "--trainer.participation 0.5 and --trainer.clients_per_round 3 both say how many clients a round has",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FederatedTrainer(**options)
