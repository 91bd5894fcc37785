"""What somebody else may do to a file, and what may come of it: the same as before, or one line."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flgen.errors import FlgenError

TIMES = pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])
"""How much more often than in the ordinary suite a property is tried."""

LONGEST_LINE = 3000


def tried(examples: int) -> Callable[[Any], Any]:
    """Try a property so many times, the same times in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(load: Callable[[], Any]) -> Any:
    """Return what a loader returns, or the one line that it refuses with; any other error is the test's."""
    try:
        return load()
    except FlgenError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < LONGEST_LINE
        return error


def refusal(load: Callable[[], Any]) -> str:
    """Return the one line that a loader refuses with."""
    said = outcome(load)
    assert isinstance(said, FlgenError), f"it was taken: {said!r:.200}"
    return str(said)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch '{canary}'"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def bomb_that_works(canary: Path) -> Bomb:
    """A bomb, after one of its kind has gone off."""
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()
    canary.unlink()
    return Bomb(canary)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file after some harm."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "delete", "repeat", "zero", "high"]))
        length = draw(st.integers(1, 64))
        if kind == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[place:]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        else:
            end = min(place + draw(st.sampled_from([1, 4, 8])), len(changed))
            changed[place:end] = (b"\0" if kind == "zero" else b"\xff") * (end - place)
    return bytes(changed)


NUMBERS: list[Any] = [0, -1, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), 0.5, True, None]
TEXTS = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/x",
    "a\nb",
    "\x1b[2J",
    "\0",
    "x" * 5000,
    "shard-000-00000.tar",
    "round",
    "1e999",
]
OTHERS: list[Any] = [[], {}, [[[[1]]]], {"class_path": "os.system", "init_args": {"command": "true"}}, [1] * 300]

hostile_values = (st.sampled_from([*NUMBERS, *TEXTS, *OTHERS]) | st.integers() | st.text(max_size=20)).map(
    copy.deepcopy
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside of nested lists and mappings."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places_in(inner, (*path, key))


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """Nested values of which one or two are others, or missing, or more."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        places = list(places_in(changed))
        if not places:
            return draw(hostile_values)
        *above, last = draw(st.sampled_from(places))
        place = changed
        for key in above:
            place = place[key]
        kind = draw(st.sampled_from(["other", "other", "other", "missing", "more"]))
        if kind == "other":
            place[last] = draw(hostile_values)
        elif kind == "missing":
            del place[last]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=8))] = draw(hostile_values)
        else:
            place.append(draw(hostile_values))
    return changed


def contents_of(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: what is written outside of where it belongs shows in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def without_digest(checkpoint: Path) -> Path:
    """Take its own digest out of a checkpoint's manifest, as earlier versions wrote it: what it says is believed."""
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["blake2b"]
    file.write_text(json.dumps(manifest))
    return checkpoint
