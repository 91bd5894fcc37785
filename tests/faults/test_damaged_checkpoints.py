"""The newest checkpoint was truncated, corrupted or lost a file.

Promised (design, section 6): a checkpoint that is not whole is never chosen; the one before is taken and the damaged
one is named; the run comes to what an undisturbed one does. Where no good one is left, `last` refuses in one line and
`auto` starts afresh in the same folder.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import DAMAGES, assert_equal, fit, newest_checkpoint, sabotaged
from small_faults import small_fit

from flgen.errors import FlgenError
from flgen.experiment.checkpoints import open_checkpoint
from flgen.experiment.records import read_events

CASES = [(method, damage) for method in ("prism", "dispfl") for damage in DAMAGES]


@pytest.mark.parametrize(
    ("method", "damage"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.long) for case in CASES[1:])]
)
def test_the_one_before_a_damaged_checkpoint_is_taken_and_said(
    method: str, damage: str, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    killed = {"hook": "on_round_start", "round": 5, "count": 1, "rank": 0, "victim": "rank"}
    strike = sabotaged(tmp_path / "strike.yaml", "Strike", **killed, once=str(tmp_path / "killed"))
    assert fit(tmp_path, *small_fit(method, "run"), strike).status == 1
    newest = newest_checkpoint(tmp_path / "run")
    file = random.Random(f"{method} {damage}").choice(sorted(newest.iterdir()))
    DAMAGES[damage](file)
    with pytest.raises(FlgenError):
        open_checkpoint(newest)
    done = fit(tmp_path, *small_fit(method, "run"))
    assert done.status == 0, done.printed
    (said,) = [line for line in done.printed.splitlines() if "trying the one before" in line]
    assert f"checkpoints/{newest.name} " in said
    begun = [event["round"] for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "resume"]
    assert begun == [3]
    assert_equal(tmp_path / "run", undisturbed(method))


def test_where_all_are_damaged_last_refuses_and_auto_starts_afresh(
    fit_small: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit_small(tmp_path / "undisturbed", method="FedAvg", rounds=3)
    fit_small(tmp_path / "run", method="FedAvg", rounds=2)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        DAMAGES["corrupted"](path / "server.pt")
    written = (tmp_path / "run" / "metrics.csv").read_bytes()
    with pytest.raises(FlgenError, match=r"no usable checkpoint in .*anew in this one with --ckpt_path auto"):
        fit_small(tmp_path / "run", method="FedAvg", rounds=3, ckpt_path="last")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == written
    fit_small(tmp_path / "run", method="FedAvg", rounds=3, ckpt_path="auto")
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
