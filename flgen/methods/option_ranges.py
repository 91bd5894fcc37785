"""What a method says about an option whose number is out of its range; an option that was not given (None) is in it."""

from __future__ import annotations

from flgen.errors import UsageError


def at_least(least: float, **options: float | None) -> None:
    """Refuse options of --method that are below a number.

    Args:
        least: The smallest allowed.
        options: Their values, by name.

    Raises:
        UsageError: One is below it, or not a number.
    """
    _refuse([(name, value) for name, value in _given(options) if not value >= least], f"{least:g} or more")


def above_0(**options: float | None) -> None:
    """Refuse options of --method that are 0 or below.

    Raises:
        UsageError: One is, or is not a number.
    """
    _refuse([(name, value) for name, value in _given(options) if not value > 0], "a number above 0")


def shares(**options: float | None) -> None:
    """Refuse options of --method that do not lie between 0 and 1.

    Raises:
        UsageError: One does not, or is not a number.
    """
    _refuse([(name, value) for name, value in _given(options) if not 0 < value < 1], "a share between 0 and 1")


def _given(options: dict[str, float | None]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in options.items() if value is not None]


def _refuse(wrong: list[tuple[str, float]], wanted: str) -> None:
    for name, value in wrong:
        raise UsageError(f"--method.{name} is {value}: give {wanted}")
