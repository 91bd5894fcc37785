"""The table of two nodes says what the rounds say."""

from __future__ import annotations

import pytest
from two_nodes import COLUMNS, WORKLOADS, Rounds, summary, table

from flgen.cli import main


def row(round_s: float, communication_s: float, waiting_s: float) -> dict[str, float]:
    return {
        "time/round_s": round_s,
        "time/communication_s": communication_s,
        "time/waiting_s": waiting_s,
        "comm/wire_bytes": 1234,
    }


def test_a_fit_is_told_by_its_median_round() -> None:
    rows = [row(2.0, 0.5, 0.2), row(4.0, 0.4, 0.4), row(100.0, 90.0, 1.0)]
    assert summary(rows) == Rounds(4.0, 0.25, 0.1, 1234)


def test_the_table_has_a_line_per_method() -> None:
    lines = table({"PRISM": (Rounds(0.5, 0.1, 0.2, 10), Rounds(1.0, 0.25, 0.05, 12345))}).splitlines()
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert lines[2] == "| PRISM | 2.00 | 1.00 | 0.50 | 10.0 % | 25.0 % | 20.0 % | 5.0 % | 12,345 |"


@pytest.mark.parametrize("method", WORKLOADS)
def test_its_commands_parse(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", *WORKLOADS[method], "--trainer.num_nodes=2", "--print_config"])
    assert done.value.code == 0
    assert "num_nodes: 2" in capsys.readouterr().out
