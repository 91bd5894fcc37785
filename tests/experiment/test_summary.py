"""summary.csv: what several seeds gave together."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flgen.errors import FlgenError
from flgen.experiment.summary import SummaryRow, describe_spread, read_summary, summarise, write_summary


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
