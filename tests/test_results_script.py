"""The script behind docs/results/dispfl.md: tables of finished runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "dispfl_results.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dispfl_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_row_has_the_file_of_its_baseline(script: ModuleType) -> None:
    overlays = {overlay for overlay in script.METHODS.values() if overlay is not None}
    assert overlays <= {path.stem for path in script.BASELINES.glob("*.yaml")}


def test_the_tables_hold_what_the_runs_measured(script: ModuleType, fit_small: Any, tmp_path: Path) -> None:
    result = {
        name: fit_small(tmp_path / name, method=method, every=1)
        for name, method in {"sparse": "DisPFL", "alone": "Local", "server": "FedAvg"}.items()
    }
    runs = [tmp_path / name for name in result]
    lines = script.table({run.name: [run] for run in runs}, 1).splitlines()
    assert len(lines) == 2 + 3
    for line, (name, fit) in zip(lines[2:], result.items(), strict=True):
        row = dict(zip(cells(lines[0]), cells(line), strict=True))
        assert row["method"] == name
        for column, metric in {"accuracy, trained": "trained", "aggregated": "aggregated"}.items():
            value = fit.metrics.get(f"test/accuracy_{metric}")
            assert row[column] == ("" if value is None else f"{100 * value:.1f}")
        assert row["MB a round"] == f"{fit.metrics['comm/bytes'] / 1e6:.2f}"
    course = script.course(runs, 1).splitlines()
    assert cells(course[0]) == ["round", *result]
    assert [cells(line)[0] for line in course[2:]] == ["1", "2"]
    assert cells(course[-1])[2] == f"{100 * result['alone'].metrics['test/accuracy_trained']:.2f} / -"


def test_digits_trains_what_is_missing_and_shows_the_spread_over_seeds(
    script: ModuleType, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train(overlay: str | None, seed: int, run_dir: Path) -> None:
        trained.append((overlay, seed))
        fit_small(run_dir, method="DisPFL" if overlay is None else "Local", seed=seed, every=1)

    monkeypatch.setattr(script, "METHODS", {"Local": "local", "DisPFL": None})
    monkeypatch.setattr(script, "train", train)
    lines = script.digits(tmp_path, [3, 4], 1).splitlines()
    assert trained == [("local", 3), ("local", 4), (None, 3), (None, 4)]
    assert [cells(line)[0] for line in lines[2:]] == ["Local", "DisPFL"]
    assert all("±" in cells(line)[1] for line in lines[2:])
    monkeypatch.undo()
    script.train("local", 3, tmp_path / "local-3")  # finished: nothing is started
