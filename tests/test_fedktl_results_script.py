"""The script behind docs/results/fedktl.md: the table of finished runs, and what it trains."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flgen import FederatedTrainer, FedKTL, Local, LocalSplit, LocalTraining, RandomProjection, SmallCNN
from flgen.callbacks import Evaluation
from flgen.data import Digits, Shards
from flgen.experiment.records import read_metrics
from flgen.methods.latent_alignment import AlignmentTraining

SCRIPT = Path(__file__).parent / "benchmarks" / "fedktl_results.py"
CONFIGS = Path(__file__).parents[1] / "configs"
BASELINES = CONFIGS / "baselines"
TRAINING = LocalTraining(batch_size=32, clip_norm=5.0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("fedktl_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(run_dir: Path, method: Any, seed: int = 0, validation: float = 0.2) -> None:
    trainer = FederatedTrainer(rounds=2, accelerator="cpu", devices=1, threads_per_rank=1, callbacks=[])
    trainer.fit(
        method,
        SmallCNN(image_size=8, width=4, learning_rate=0.02),
        Digits(),
        Shards(clients=5, shards_per_client=4),
        split=LocalSplit(test="own", validation_fraction=validation),
        evaluation=Evaluation(every=1, extractors=[]),
        run_dir=run_dir,
        seed_everything=seed,
        partition_seed=0,
    )


def fedktl() -> FedKTL:
    return FedKTL(TRAINING, RandomProjection(channels=1), mu=1.0, alignment=AlignmentTraining(epochs=2))


def table_of(text: str) -> list[dict[str, list[str]]]:
    """Return the rows; a heading that stands twice has two cells."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    found = []
    for row in rows:
        cells: dict[str, list[str]] = {}
        for name, cell in zip(header, row, strict=True):
            cells.setdefault(name, []).append(cell)
        found.append(cells)
    return found


def test_every_row_has_the_file_of_its_baseline(script: ModuleType) -> None:
    overlays = {overlay for overlay in script.METHODS.values() if overlay is not None}
    assert overlays <= {path.stem for path in BASELINES.glob("*.yaml")}
    assert {"fedktl_digits", "fedktl_generator_digits"} <= {path.stem for path in CONFIGS.glob("*.yaml")}


def test_the_table_holds_what_the_runs_measured(script: ModuleType, tmp_path: Path) -> None:
    fit(tmp_path / "transfer", fedktl())
    fit(tmp_path / "alone", Local(TRAINING), validation=0.0)
    found = script.find_experiments([str(tmp_path / name) for name in ("transfer", "alone")])
    transfer, alone = table_of(script.table({one.label: one for one in found}))
    rows = read_metrics(tmp_path / "transfer" / "metrics.csv")
    chosen = max(rows, key=lambda row: row["val/pooled/accuracy_trained"])  # the first of equals
    test = [row["test/pooled/accuracy_trained"] for row in rows]
    assert transfer["method"] == ["transfer"]
    assert transfer["accuracy, chosen on validation"] == [f"{100 * chosen['test/pooled/accuracy_trained']:.2f}"]
    assert transfer["last round"] == [f"{100 * test[-1]:.2f}"]
    assert transfer["best on test (flatters)"] == [f"{100 * max(test):.2f}"]
    assert transfer["MB up"] == [f"{rows[-1]['comm/up_bytes'] / 1e6:.4f}"]
    assert transfer["MB down"] == [f"{rows[-1]['comm/down_bytes'] / 1e6:.4f}"]
    assert transfer["formula"] == [f"{rows[-1][f'comm/{way}_scalars_formula']:,.0f}" for way in ("up", "down")]
    assert transfer["beside the formula"] == [f"labels {rows[-1]['comm/up_scalars/labels']} up"]
    assert alone["accuracy, chosen on validation"] == [""]
    assert (alone["scalars up"], alone["MB down"]) == (["0"], ["0.0000"])


def test_seeds_of_one_folder_are_one_row_with_their_spread(script: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        fit(tmp_path / "ktl" / f"seed-{seed}", fedktl(), seed)
    (row,) = table_of(script.table({one.label: one for one in script.find_experiments([str(tmp_path / "ktl")])}))
    last = [
        read_metrics(tmp_path / "ktl" / f"seed-{seed}" / "metrics.csv")[-1]["test/pooled/accuracy_trained"]
        for seed in (0, 1)
    ]
    assert row["last round"] == [f"{50 * sum(last):.2f} ± {100 * abs(last[0] - last[1]) / 2**0.5:.2f}"]


def test_digits_trains_the_generator_then_every_method(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> None:
        commands.append(list(command))
        run_dir = Path(next(word for word in command if word.startswith("--run_dir=")).partition("=")[2])
        if run_dir.name == "generator":
            run_dir.mkdir()
            (run_dir / "events.jsonl").write_text('{"event": "end"}\n')
            return
        for seed in (3, 4):
            fit(run_dir / f"seed-{seed}", fedktl() if run_dir.name == "fedktl" else Local(TRAINING), seed)

    monkeypatch.setattr(script, "METHODS", {"Local": "local_networks", "FedKTL": None})
    monkeypatch.setattr(subprocess, "run", run)
    rows = table_of(script.digits(tmp_path, [3, 4]))
    assert [row["method"] for row in rows] == [["Local"], ["FedKTL"]]
    assert all("±" in row["last round"][0] for row in rows)
    generator, local, ktl = commands
    assert str(CONFIGS / "fedktl_generator_digits.yaml") in generator
    assert str(BASELINES / "local_networks.yaml") in local
    assert "--seeds=[3, 4]" in local
    assert f"--method.generator.checkpoint={tmp_path / 'generator' / 'checkpoints' / 'last'}" in ktl
    script.digits(tmp_path, [3, 4])  # finished: nothing is started
    assert len(commands) == 3
