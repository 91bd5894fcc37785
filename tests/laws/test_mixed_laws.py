"""The laws of a federated run where clients have different networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mixed_trial import two_kinds
from test_laws import assert_same_run, client_states


@pytest.mark.parametrize("method", ["FedKTL", "FML", "FedTGP", "FedDistill", "LGFedAvg"])
def test_laws_1_and_2_hold_for_clients_with_two_kinds_of_networks(method: str, fit_small: Any, tmp_path: Path) -> None:
    """The second has BatchNorm, whose statistics and counters are part of a client's state."""

    def fit(run: str, **options: Any) -> None:
        fit_small(tmp_path / run, method=method, model=two_kinds(), every=1, **options)

    fit("whole", rounds=3)
    fit("parts", rounds=2, devices=2)
    fit("parts", rounds=3, ckpt_path="last")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    states = client_states(tmp_path / "whole")
    assert ["counters" in states[k] for k in range(5)] == [False, True, False, True, False]
