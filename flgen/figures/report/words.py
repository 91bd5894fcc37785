"""Numbers, sizes, durations and times as the page writes them."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

MOST_LISTED = 6


def number(value: float | None) -> str:
    """Return a number with five significant digits; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}" if abs(value) < 1e15 else f"{float(value):.4e}"
    return f"{value:.5g}"


def size(count: float) -> str:
    """Return a number of bytes in the unit that gives it one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("the last unit has no limit")


def duration(seconds: float) -> str:
    """Return a time span by its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def moment(event: Any) -> datetime | None:
    """Return when an event happened; None if it does not say so."""
    given = event.get("time")
    try:
        time = datetime.fromisoformat(given) if isinstance(given, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo is not None else time.replace(tzinfo=UTC)


def at(time: datetime | None, seconds: bool = False) -> str:
    """Return a time in UTC; nothing for None."""
    if time is None:
        return ""
    try:
        return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError):  # in the year 1, some hours before UTC
        return ""


def signal_name(given: Any) -> str:
    """Return SIGTERM for 15."""
    try:
        return signal.Signals(given).name
    except (ValueError, TypeError):
        return f"signal {given}"


def listed(texts: Iterable[str]) -> str:
    """Return different texts, each once, with commas; a long list is cut."""
    once = list(dict.fromkeys(text for text in texts if text))
    return ", ".join(once if len(once) <= MOST_LISTED else [*once[: MOST_LISTED - 1], f"… ({len(once)})"])


def ranges(rounds: Sequence[int]) -> str:
    """Return "round 3", or "rounds 10, 20 ... 200"; nothing for none."""
    if not rounds:
        return ""
    if len(rounds) == 1:
        return f"round {rounds[0]}"
    shown = [str(one) for one in rounds]
    return f"rounds {', '.join(shown)}" if len(shown) <= 3 else f"rounds {shown[0]}, {shown[1]} … {shown[-1]}"
