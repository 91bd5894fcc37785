"""The script behind docs/results/prism.md: the table of finished runs, and what it trains."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flgen.experiment.records import read_metrics

SCRIPT = Path(__file__).parent / "benchmarks" / "prism_results.py"
BASELINES = Path(__file__).parents[1] / "configs" / "baselines"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("prism_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judge(run_dir: Path, *fids: float) -> None:
    """Write into a run's metrics what an evaluation would have, a FID per round."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, fid in zip(rows, fids, strict=True):
        row["fid/mnist"] = str(fid)
        row.update({f"prdc/{kind}/mnist": "0.5" for kind in ("precision", "recall", "density", "coverage")})
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(text: str) -> list[dict[str, str]]:
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def found(script: ModuleType, *runs: Path) -> Any:
    return {one.label: one for one in script.find_experiments([str(run) for run in runs])}


def test_every_row_has_the_file_of_its_rival(script: ModuleType) -> None:
    overlays = {row.overlay for row in script.ROWS.values() if row.overlay is not None}
    assert overlays <= {path.stem for path in BASELINES.glob("*.yaml")}


def test_the_table_holds_quality_bytes_and_what_is_stored(script: ModuleType, fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "prism", method="Prism")
    fit_small(tmp_path / "dense", method="FedAvgGenerator")
    judge(tmp_path / "prism", 9.0, 12.0)
    judge(tmp_path / "dense", 8.0, 6.0)
    prism, dense = rows_of(script.table(found(script, tmp_path / "prism", tmp_path / "dense")))
    measured = read_metrics(tmp_path / "prism" / "metrics.csv")
    assert (prism["FID"], prism["best FID on test (flatters)"]) == ("12.00", "9.00")
    assert prism["precision / recall"] == "0.50 / 0.50"
    assert prism["MB up, as sent"] == f"{sum(row['comm/up_bytes'] for row in measured) / 1e6:.2f}"
    assert prism["bits up per weight"] == f"{measured[-1]['comm/up_bits_per_scalar']:.3f}"
    assert dense["packed"] == dense["authors' convention"] == dense["epsilon"] == ""
    weights = int(read_metrics(tmp_path / "dense" / "metrics.csv")[0]["comm/up_scalars/weights"]) // 5
    assert dense["stored bytes"] == f"{4 * weights + 8 * script.batch_norm_channels(8, 8):,}"
    assert int(prism["stored bytes"].replace(",", "")) < 4 * weights


def test_seeds_of_one_folder_are_one_row_with_their_spread(script: ModuleType, fit_small: Any, tmp_path: Path) -> None:
    for seed, fid in ((0, 10.0), (1, 14.0)):
        fit_small(tmp_path / "prism" / f"seed-{seed}", method="Prism", seed=seed)
        judge(tmp_path / "prism" / f"seed-{seed}", 20.0, fid)
    (row,) = rows_of(script.table(found(script, tmp_path / "prism")))
    assert row["FID"] == "12.00 ± 2.83"


def test_mnist_trains_each_row_once_those_of_several_seeds_with_all(
    script: ModuleType, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> None:
        commands.append(list(command))
        run_dir = Path(next(word for word in command if word.startswith("--run_dir=")).partition("=")[2])
        method = "FedAvgGenerator" if run_dir.name == "dense" else "Prism"
        for folder in [run_dir / "seed-3", run_dir / "seed-4"] if run_dir.name == "dagger" else [run_dir]:
            fit_small(folder, method=method)
            judge(folder, 2.0, 1.0)

    monkeypatch.setattr(subprocess, "run", run)
    names = ["PRISM without MADA (dagger)", "FedAvg of the dense generator"]
    table = script.mnist("somewhere", tmp_path, [3, 4], names)
    assert [row["method"] for row in rows_of(table)] == names
    dagger, dense = commands
    assert {str(BASELINES / "prism_without_mada.yaml"), "--seeds=[3, 4]", "--data.root=somewhere"} <= set(dagger)
    assert str(BASELINES / "dense_generator.yaml") in dense
    script.mnist("somewhere", tmp_path, [3, 4], names)  # finished: nothing is started
    assert len(commands) == 2
