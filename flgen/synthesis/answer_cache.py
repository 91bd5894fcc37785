"""Answers of endpoints, kept on disk so that a re-run asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flgen.errors import FlgenError
from flgen.experiment.plain_values import json_value
from flgen.experiment.records import atomic_replace


def request_key(url: str, body: Mapping[str, Any], repeat: int) -> str:
    """Return the SHA-256 of a request's canonical JSON, in hexadecimal.

    Args:
        url: Where it goes.
        body: Its JSON body; the order of keys makes no difference.
        repeat: 0, or how many times the same question has been asked before on purpose.
    """
    return hashlib.sha256(_canonical({"url": url, "body": body, "repeat": repeat}).encode()).hexdigest()


class AnswerCache:
    """One file per answer: a line with the request and the answer's SHA-256, then the answer itself.

    A file is complete when it has its name; one that is damaged all the same is as good as none, and is written anew.

    Args:
        folder: Where the files lie; None is `$FLGEN_CACHE/answers`, else `~/.cache/flgen/answers`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        base = os.environ.get("FLGEN_CACHE") or "~/.cache/flgen"
        self.folder = Path(folder if folder is not None else Path(base) / "answers").expanduser()
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    @contextmanager
    def only_one(self, key: str) -> Iterator[None]:
        """Let one thread at a time look for this answer and fetch it."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield

    def read(self, key: str) -> bytes | None:
        """Return the answer to a request, None if it is not at hand."""
        try:
            header, newline, content = self._file(key).read_bytes().partition(b"\n")
            whole = newline and json_value(header)["sha256"] == hashlib.sha256(content).hexdigest()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FlgenError(f"cannot read {self._file(key)}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError):
            return None
        return content if whole else None

    def write(self, key: str, content: bytes, request: Mapping[str, Any]) -> None:
        """Keep an answer, with the request for whoever looks into the file."""
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlgenError(
                f"{file.parent} cannot be made ({error.strerror}): name another folder with cache_dir"
            ) from error
        header = _canonical({"sha256": hashlib.sha256(content).hexdigest(), "request": request})
        with atomic_replace(file) as temporary:
            temporary.write_bytes(header.encode() + b"\n" + content)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / key


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
