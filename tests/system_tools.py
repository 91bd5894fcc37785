"""Programs and rights that tests marked `system` need; without them a test is skipped here, and fails in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def require(*programs: str, root: bool = False) -> None:
    """Skip the running test, with the reason, unless all is there; in CI its lack is a failure.

    Args:
        programs: Names of programs to be found on PATH or among the system's.
        root: Whether the test makes namespaces, mounts or starts daemons.
    """
    system_path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    lacking = [name for name in programs if shutil.which(name, path=system_path) is None]
    if root and os.geteuid() != 0:
        lacking.append("root's rights")
    if lacking:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"needs {', '.join(lacking)}: apt-get install $(make --silent system-packages), as root")
