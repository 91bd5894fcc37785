"""One cluster for all tests here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from system_tools import require


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes; daemons and jobs are gone after the last test, whatever happened."""
    require("slurmctld", "slurmd", "munged", "sbatch", "unshare", root=True)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with Cluster(tmp_path_factory.mktemp("slurm"), {"PATH": path}) as running:
        yield running
