"""Optional packages: a missing one is a line that says what to install."""

from __future__ import annotations

import importlib.util

from flgen.errors import FlgenError


def require_extra(*packages: str, extra: str = "synthesis") -> None:
    """Make sure that packages of an extra of flgen are installed, without importing them.

    Raises:
        FlgenError: If one is not.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise FlgenError(f'{" and ".join(missing)} not installed: pip install "flgen[{extra}]"')
