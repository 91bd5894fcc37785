"""Runs that nobody disturbs, for tests to compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from harness import fit
from small_faults import small_fit


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the run folder of a finished small run of a method."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def run_of(method: str) -> Path:
        done = fit(folder, *small_fit(method, method))
        assert done.status == 0, done.printed
        return folder / method

    return run_of
