"""What is said about an option whose number is out of its range; one that has no number (None, "auto") is in it."""

from __future__ import annotations

from flgen.errors import UsageError

Option = float | str | None


def at_least(section: str, least: float, **options: Option) -> None:
    """Refuse options that are below a number.

    Args:
        section: Where they stand, such as "method".
        least: The smallest allowed.
        options: Their values, by name.

    Raises:
        UsageError: One is below it, or not a number.
    """
    wrong = [(name, value) for name, value in _numbers(options) if not value >= least]
    _refuse(section, wrong, f"{least:g} or more")


def above_0(section: str, unit: str = "a number", **options: Option) -> None:
    """Refuse options that are 0 or below, or infinite.

    Args:
        section: Where they stand, such as "trainer".
        unit: What to give, such as "seconds".
        options: Their values, by name.

    Raises:
        UsageError: One is, or is not a number.
    """
    wrong = [(name, value) for name, value in _numbers(options) if not 0 < value < float("inf")]
    _refuse(section, wrong, f"{unit} above 0")


def shares(section: str, **options: Option) -> None:
    """Refuse options that do not lie between 0 and 1.

    Args:
        section: Where they stand, such as "method".
        options: Their values, by name.

    Raises:
        UsageError: One does not, or is not a number.
    """
    wrong = [(name, value) for name, value in _numbers(options) if not 0 < value < 1]
    _refuse(section, wrong, "a share between 0 and 1")


def _numbers(options: dict[str, Option]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in options.items() if value is not None and not isinstance(value, str)]


def _refuse(section: str, wrong: list[tuple[str, float]], wanted: str) -> None:
    for name, value in wrong:
        raise UsageError(f"--{section}.{name} is {value}: give {wanted}")
