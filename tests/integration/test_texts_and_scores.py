"""Classifiers of every kind of data in real fits: F1 of the whole test set on any number of ranks, texts, traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CONFIGS, Flgen
from small_texts import Reviews, write_bert, write_utterances

from flgen.data import IID, Digits
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_ledger, read_metrics
from flgen.metrics.classification import f1_scores
from flgen.models import EmbeddingBagClassifier, SmallCNN, TorchvisionResNet, TransformerClassifier

SCORES = ("test/accuracy", "test/f1_macro", "test/f1_weighted")


def last_row(run_dir: Path) -> dict[str, Any]:
    return read_metrics(run_dir / "metrics.csv")[-1]


def test_f1_is_that_of_the_whole_test_set_on_any_number_of_ranks(fit_small: Any, tmp_path: Path) -> None:
    for ranks in (1, 2):
        fit_small(tmp_path / str(ranks), method="FedAvg", devices=ranks, every=1)
    rows = [last_row(tmp_path / ranks) for ranks in ("1", "2")]
    assert [rows[0][name] for name in SCORES] == [rows[1][name] for name in SCORES]
    checkpoint = find_checkpoint(tmp_path / "1" / "checkpoints" / "last")
    model, data = SmallCNN(8, width=4).eval(), Digits()
    data.setup()
    weights = checkpoint.server_state()["method"]["weights"]
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    with torch.no_grad():
        predictions = model(data.standardize(data.test.images)).argmax(dim=1)
    whole = f1_scores(predictions, data.test.labels)
    assert rows[0]["test/f1_macro"] == pytest.approx(whole["f1_macro"], abs=1e-3)
    assert rows[0]["test/f1_weighted"] == pytest.approx(whole["f1_weighted"], abs=1e-3)


def test_texts_are_learnt_by_a_bag_of_words(fit_small: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EmbeddingBagClassifier(100, classes=2, learning_rate=1.0)
    data = Reviews(length=4, vocabulary=100)
    fit_small(tmp_path, method="FedAvg", model=model, data=data, partition=IID(2), rounds=15, every=15)
    assert [last_row(tmp_path)[name] for name in SCORES] == [1.0, 1.0, 1.0]


def test_only_the_head_of_a_frozen_encoder_travels(fit_small: Any, tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    encoder = str(tmp_path / "bert")
    model = TransformerClassifier(encoder, classes=2, learning_rate=0.3)
    data = Reviews(length=8, tokenizer=encoder)
    fit_small(tmp_path / "run", method="FedAvg", model=model, data=data, partition=IID(2), rounds=2, every=2, devices=2)
    uploads = [row["bytes"] for row in read_ledger(tmp_path / "run" / "ledger.csv") if row["phase"] == "upload"]
    floats = 8 * 2 + 2
    assert all(2 * 4 * floats < upload <= 2 * (4 * floats + 64) for upload in uploads)  # two clients, with headers
    assert set(SCORES) <= set(last_row(tmp_path / "run"))


def test_batch_statistics_travel_and_a_last_batch_of_one_image_is_trained_on(fit_small: Any, tmp_path: Path) -> None:
    model = TorchvisionResNet(18, channels=1, classes=10, learning_rate=0.01)
    fit_small(
        tmp_path,
        method="FedAvg",
        model=model,
        partition=IID(43),  # 33 digits each: a batch of 32, and one of 1
        rounds=1,
        every=1,
        clients_per_round=1,
    )
    d = sum(parameter.numel() for parameter in model.parameters())
    (upload,) = (row["bytes"] for row in read_ledger(tmp_path / "ledger.csv") if row["phase"] == "upload")
    assert 4 * (d + 9_600) < upload <= 4 * (d + 9_600) + 64
    assert last_row(tmp_path)["train/loss"] > 0


def test_the_shipped_configuration_of_meld_makes_a_client_of_each_speaker(flgen: Flgen, tmp_path: Path) -> None:
    lines = [(f"{word} {number}", speaker, mood) for number in range(11) for word, speaker, mood in SAID]
    write_utterances(tmp_path / "data" / "MELD" / "train_sent_emo.csv", lines)
    write_utterances(tmp_path / "data" / "MELD" / "test_sent_emo.csv", [said for said in lines if said[1] != "Woman"])
    run = flgen("fit", "--config", str(CONFIGS / "gptfl_meld.yaml"), "--trainer.rounds", "20", "--trainer.devices", "1")
    assert run.returncode == 0, run.stderr
    row = last_row(tmp_path / "runs" / "gptfl_meld")
    assert row["test/f1_macro"] == row["test/f1_weighted"] == 1.0
    uploads = read_ledger(tmp_path / "runs" / "gptfl_meld" / "ledger.csv")[1]
    assert uploads["messages"] == 2


SAID = [
    ("great", "Joey", "positive"),
    ("awful", "Joey", "negative"),
    ("great", "Ross", "positive"),
    ("awful", "Ross", "negative"),
    ("so", "Woman", "neutral"),
]
