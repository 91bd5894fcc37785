"""A client takes its time.

Promised (design, section 4): every wait has a limit. Within `round_timeout_s` a slow client costs time and nothing
else; beyond it the job ends, on every rank, and says which limit it was. A rank that is asked to end does so after the
local step that it is at, and is killed after half a minute.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from harness import assert_equal
from sabotage import SlowClient

from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events
from flgen.federation.launch import RanksFailed


@pytest.mark.parametrize("method", ["FedAvg", "DPSGD"])
def test_a_client_that_is_slow_but_not_too_slow_changes_nothing(method: str, fit_small: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "undisturbed", method=method)
    slow = SlowClient(client=3, round=2, seconds=1.5)
    limits = {"timeout_s": 1, "round_timeout_s": 30}  # longer than an exchange may take, not longer than a round
    fit_small(tmp_path / "run", method=method, devices=2, callbacks=[slow], **limits)
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("method", ["FedAvg", pytest.param("DPSGD", marks=pytest.mark.system)])
def test_a_client_that_is_too_slow_ends_the_job_which_goes_on_later(
    method: str, fit_small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit_small(tmp_path / "undisturbed", method=method, rounds=3)
    slow = SlowClient(client=3, round=2, seconds=5)
    began = time.monotonic()
    with pytest.raises(RanksFailed):
        fit_small(tmp_path / "run", method=method, rounds=3, devices=2, callbacks=[slow], round_timeout_s=1.5)
    assert time.monotonic() - began < 30
    printed = capfd.readouterr().err
    assert printed.count("flgen: error:") == 1
    assert "had no answer from the other ranks in time" in printed
    assert "--trainer.round_timeout_s" in printed
    assert "Traceback" not in printed
    assert read_events(tmp_path / "run" / "events.jsonl")[-1]["event"] == "failed"
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == 1
    fit_small(tmp_path / "run", method=method, rounds=3, devices=2, round_timeout_s=30, ckpt_path="auto")
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
