"""One table for all benchmarks, and one thread for each process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from report import Report

PAGE = Path(__file__).parents[2] / "docs" / "results" / "benchmarks.md"


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The table that every benchmark adds its rows to; printed at the end, and kept if that was asked for."""
    collected = Report()
    yield collected
    print("\n\n" + collected.text(), flush=True)
    if os.environ.get("FLGEN_BENCHMARK_REPORT") == "1":
        collected.write(PAGE)
        print(f"\nwritten to {PAGE}", flush=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
