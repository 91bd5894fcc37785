"""Two hosts for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from system_tools import require
from two_hosts import TwoHosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    """Two hosts that reach each other; they are gone after the test, whatever happened in it."""
    require("ip", root=True)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with TwoHosts(outputs) as both:
        yield both
