"""Which flgen is running, for the records of a run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str | None:
    """Return the version of the installed package; None where its files are used without having been installed."""
    try:
        return version("flgen")
    except PackageNotFoundError:
        return None
