"""Isolated fine-tuning by hand: a few clients train alone, and are tested on everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Trial, row
from small_methods import small_method, small_model

from flgen import Digits, Evaluation, FederatedTrainer, Isolated, LocalTraining, Shards
from flgen.errors import UsageError
from flgen.experiment.records import read_clients, read_ledger, read_metrics

TARGETS = [1.0, 2.0, 3.0, 4.0]


def pull() -> Pull:
    return Pull([0], [[target] for target in TARGETS])


def test_participants_train_alone_for_all_epochs_and_nobody_else_keeps_anything() -> None:
    method = Isolated(LocalTraining(epochs=3, batch_size=1000), participants=2)
    trial = Trial(method, pull(), (1, 1, 1, 1))
    for t in (1, 2):
        trial.round(t)
    assert len(method.S_0) == 2
    for k, target in enumerate(TARGETS):
        if k in method.S_0:
            assert torch.allclose(trial.state(k)["weights"], row(target * (1 - 0.9**6)))  # 2 rounds of 3 epochs
        else:
            assert trial.state(k) == {}


def test_the_result_is_the_mean_over_participants_on_the_whole_test_split() -> None:
    method = Isolated(ONE_STEP, participants=2)
    trial = Trial(method, pull(), (1, 1, 1, 1))
    outcome = trial.round(1)
    # The test split has one image of each class: the batch's first, class 0, says which target is meant.
    expected = {k: (0.1 * TARGETS[k] - TARGETS[0]) ** 2 for k in method.S_0}
    assert {k: told["test/accuracy"] for k, told in outcome.clients.items() if told} == pytest.approx(expected)
    assert outcome.metrics["test/accuracy"] == pytest.approx(sum(expected.values()) / 2)
    assert trial.evaluate(1) == {
        k: ({"test/accuracy": outcome.clients[k]["test/accuracy"]} if k in expected else {}) for k in range(4)
    }


def test_nothing_is_exchanged() -> None:
    outcome = Trial(Isolated(ONE_STEP, participants=2), pull(), (1, 1, 1, 1)).round(1)
    assert [(entry.messages, entry.bytes) for entry in outcome.ledger] == [(0, 0)]
    assert outcome.metrics["comm/bytes"] == 0


def test_participants_are_drawn_by_the_seed_and_stay(fit_small: Any, tmp_path: Path) -> None:
    drawn = {}
    for seed in (7, 8, 9, 10):
        fit_small(tmp_path / str(seed), method="Isolated", method_options={"participants": 2}, seed=seed, every=1)
        rows = [entry for entry in read_clients(tmp_path / str(seed) / "clients.csv") if "test/accuracy" in entry]
        by_round = [{entry["client"] for entry in rows if entry["round"] == t} for t in (1, 2)]
        assert by_round[0] == by_round[1]
        assert len(by_round[0]) == 2
        drawn[seed] = frozenset(by_round[0])
    assert len(set(drawn.values())) > 1


def test_it_is_measured_even_where_clients_own_data_are_not(fit_small: Any, tmp_path: Path) -> None:
    evaluation = Evaluation(every=2, extractors=[], personal=False)
    fit_small(tmp_path / "run", method="Isolated", evaluation=evaluation, rounds=3)
    tested = [row.get("test/accuracy") for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert all(tested)
    assert tested[0] < tested[2]
    assert {entry["bytes"] for entry in read_ledger(tmp_path / "run" / "ledger.csv")} == {0}


@pytest.mark.parametrize(
    ("participants", "message"), [(0, "give 1 or more"), (5, r"give 1 to 4, the number of clients")]
)
def test_there_must_be_participants_and_as_many_clients(participants: int, message: str) -> None:
    with pytest.raises(UsageError, match=rf"--method.participants is {participants}: {message}"):
        Trial(Isolated(participants=participants), pull(), (1, 1, 1, 1))


def test_a_checkpoint_is_worth_what_the_runs_last_row_says(fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="Isolated", every=1, devices=2)
    torch.manual_seed(7)
    measured = FederatedTrainer(rounds=2, accelerator="cpu", devices=1, threads_per_rank=1, callbacks=[]).evaluate(
        small_method("Isolated"),
        small_model("Isolated"),
        Digits(),
        Shards(clients=5, shards_per_client=4),
        ckpt_path=tmp_path / "run" / "checkpoints" / "last",
        seed_everything=7,
    )
    written = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert measured == {name: value for name, value in written.items() if name.startswith("test/")}
    assert len(measured) > 3
