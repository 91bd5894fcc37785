"""summary.csv: what several seeds gave together."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flgen.errors import FlgenError
from flgen.experiment.summary import (
    SummaryRow,
    describe_readings,
    describe_spread,
    read_summary,
    summarise,
    write_summary,
)


def run(final: float, best: float, extra: dict[str, float] | None = None) -> list[dict[str, float]]:
    return [
        {"round": 1, "test/accuracy": best, "train/loss": 2.0},
        {"round": 2, "test/accuracy": final, "train/loss": 1.0, **(extra or {})},
    ]


RUNS = [run(0.801, 0.9), run(0.810, 0.8), run(0.804, 0.7, {"rare": 5.0})]


def test_every_metric_of_the_final_and_of_the_best_round_is_summarised() -> None:
    rows = {(row.metric, row.round): row for row in summarise(RUNS)}
    assert set(rows) == {
        ("test/accuracy", "final"),
        ("train/loss", "final"),
        ("rare", "final"),
        ("test/accuracy", "best"),
        ("train/loss", "best"),
        ("rare", "best"),
    }
    final, best = rows["test/accuracy", "final"], rows["test/accuracy", "best"]
    assert final.mean == pytest.approx(0.805, abs=1e-12)
    assert final.std == pytest.approx(0.004582575695, abs=1e-12)
    assert best.mean == pytest.approx((0.9 + 0.810 + 0.804) / 3)
    assert rows["train/loss", "best"].mean == pytest.approx((2 + 1 + 1) / 3)  # of each seed's own best round
    assert (rows["rare", "final"].mean, rows["rare", "final"].n) == (5.0, 1)


def test_what_validation_samples_choose_stands_between_the_final_and_the_best_round() -> None:
    def seed(*values: tuple[float, float]) -> list[dict[str, float]]:
        names = ("val/pooled/accuracy_trained", "test/accuracy_trained")
        return [{"round": t, **dict(zip(names, pair, strict=True))} for t, pair in enumerate(values, start=1)]

    rows = summarise([seed((0.9, 0.5), (0.1, 0.8), (0.2, 0.7)), seed((0.1, 0.9), (0.3, 0.7), (0.2, 0.6))])
    found = {row.round: row.mean for row in rows if row.metric == "test/accuracy_trained"}
    assert list(found) == ["final", "validated", "best"]
    assert found == {"final": pytest.approx(0.65), "validated": pytest.approx(0.6), "best": pytest.approx(0.85)}


def test_the_three_readings_of_a_run_are_one_line() -> None:
    rows = [
        {"round": t, "val/pooled/accuracy_trained": val, "test/pooled/accuracy_trained": test}
        for t, val, test in ((1, 0.3, 0.5), (5, 0.6, 0.53), (10, 0.4, 0.61), (15, 0.2, 0.49))
    ]
    assert describe_readings(rows) == (
        "test/pooled/accuracy_trained: last 49.00 (round 15), chosen on validation 53.00 (round 5), best on test 61.00 "
        "(round 10; flatters)"
    )
    assert describe_readings(run(0.8, 0.9)) is None
    assert describe_readings([]) is None


def test_a_line_says_mean_deviation_and_number() -> None:
    rows = summarise(RUNS)
    assert describe_spread(rows[0].metric, rows[0]) == "test/accuracy 80.50 +- 0.46 (3 seeds)"
    assert describe_spread("train/loss", SummaryRow("train/loss", "final", 0.25, math.nan, 1)) == (
        "train/loss 0.25 (1 seed)"
    )


def test_reading_gives_the_same_bits(tmp_path: Path) -> None:
    rows = [*summarise(RUNS), SummaryRow('a "strange", name', "final", 1 / 3, 2 / 3, 2)]
    write_summary(tmp_path / "summary.csv", rows)
    alone = [row for row in rows if row.n > 1]
    assert [row for row in read_summary(tmp_path / "summary.csv") if row.n > 1] == alone
    assert (tmp_path / "summary.csv").read_text().splitlines()[0] == "metric,round,mean,std,n"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "metric,round,mean,std,n\nx,final,y,z,1\n"])
def test_a_damaged_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(text)
    with pytest.raises(FlgenError, match=r"summary\.csv is damaged .* writes it anew"):
        read_summary(tmp_path / "summary.csv")
    with pytest.raises(FlgenError, match=r"none\.csv cannot be read"):
        read_summary(tmp_path / "none.csv")
