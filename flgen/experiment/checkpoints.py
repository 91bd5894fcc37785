"""Checkpoints: a folder per round, complete or not there at all.

    checkpoints/round-00010/manifest.json      what it is, with size and digest of every file
    checkpoints/round-00010/server.pt          the server's state
    checkpoints/round-00010/clients-00000.pt   the states of the clients that rank 0 hosted, and so on

It is written under a temporary name and renamed when every file is on disk. Files are read with
`weights_only=True`; a folder whose manifest does not fit its files is never chosen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flgen.errors import FlgenError

log = logging.getLogger("flgen")

FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as it was written."""

    name: str
    bytes: int
    blake2b: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found complete.

    Args:
        path: Its folder.
        round: The last round that it contains.
        identity: What must be the same for a run to continue from it (seed, partition, method).
        files: Every file of it.
    """

    path: Path
    round: int
    identity: dict[str, Any]
    files: tuple[FileRecord, ...]

    def server_state(self) -> dict[str, Any]:
        """Return what the server saved."""
        return _read(self.path / "server.pt")

    def client_states(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return every client's state by id, memory-mapped: only what is used is read."""
        states: dict[int, dict[str, torch.Tensor]] = {}
        for record in self.files:
            if record.name.startswith("clients-"):
                states.update(_read(self.path / record.name))
        return states


def checkpoint_name(round: int) -> str:
    """Return the folder's name."""
    return f"round-{round:05d}"


def start_checkpoint(folder: Path, round: int) -> Path:
    """Return the empty temporary folder of a new checkpoint; what an interrupted one left behind is removed.

    Raises:
        FlgenError: It cannot be made.
    """
    partial = folder / f".{checkpoint_name(round)}.partial"
    for left_behind in folder.glob(".round-*.partial"):
        shutil.rmtree(left_behind, ignore_errors=True)
    with _writing(partial):
        partial.mkdir(parents=True)
    return partial


def write_state(partial: Path, name: str, state: Any) -> FileRecord:
    """Save one file of a checkpoint and return its record.

    Raises:
        FlgenError: It cannot be written.
    """
    path = partial / name
    with _writing(path):
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return _record(path)


def finish_checkpoint(partial: Path, round: int, identity: dict[str, Any], files: list[FileRecord]) -> Path:
    """Write the manifest and give the checkpoint its name; returns the final folder.

    Checkpoints of later rounds are removed: they belong to a course of the run that was left to go on from an
    earlier one, and `last` must not find them.

    Raises:
        FlgenError: It cannot be written.
    """
    manifest = {"format": FORMAT, "round": round, "identity": identity, "files": [asdict(file) for file in files]}
    folder, final = partial.parent, partial.parent / checkpoint_name(round)
    with _writing(final):
        with (partial / "manifest.json").open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        for path, number in _by_round(folder):
            if number >= round:  # also a damaged one of this round, or this round run again
                shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, final)
    return final


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path, _ in _by_round(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint after checking that every file is whole.

    Raises:
        FlgenError: There is none, or a file is missing, truncated or changed.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise FlgenError(f"{path} is not a checkpoint (no manifest.json): give a folder like runs/x/checkpoints/last")
    try:
        manifest = json.loads(manifest_path.read_text())
        files = tuple(FileRecord(**record) for record in manifest["files"])
        checkpoint = Checkpoint(path, int(manifest["round"]), dict(manifest["identity"]), files)
        known = manifest["format"] == FORMAT
        outside = [file.name for file in files if Path(file.name).name != file.name]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlgenError(f"checkpoint {path} is damaged: its manifest.json cannot be read ({error})") from error
    if not known:
        raise FlgenError(f"checkpoint {path} has format {manifest['format']}, this flgen reads format {FORMAT}")
    if outside:
        raise FlgenError(f"checkpoint {path} is damaged: its manifest.json names {outside[0]!r}, outside its folder")
    for expected in files:
        if not _is_whole(path / expected.name, expected):
            raise FlgenError(
                f"checkpoint {path} is damaged: {expected.name} is missing or not what was written; "
                "use an older one, or --ckpt_path last to take the newest good one"
            )
    return checkpoint


def find_checkpoint(ckpt_path: str | Path, run_dir: Path | None = None) -> Checkpoint:
    """Return the checkpoint that `--ckpt_path` means.

    Args:
        ckpt_path: A checkpoint folder; or `last`, alone (of `run_dir`) or as the end of a path
            (`runs/x/checkpoints/last`), for the newest one that is not damaged.
        run_dir: The run's folder, for `last` alone.

    Raises:
        FlgenError: There is no such checkpoint, or the one that was named is damaged.
    """
    path = Path(ckpt_path)
    if path.name != "last":
        return open_checkpoint(path)
    folder = run_dir / "checkpoints" if len(path.parts) == 1 and run_dir is not None else path.parent
    for candidate, _ in reversed(_by_round(folder)):
        try:
            return open_checkpoint(candidate)
        except FlgenError as error:
            log.warning("%s; trying the one before", error)
    raise FlgenError(
        f"no usable checkpoint in {folder}: name another run, or start anew without --ckpt_path in another --run_dir"
    )


def _by_round(folder: Path) -> list[tuple[Path, int]]:
    """Return the checkpoint folders and their rounds, the oldest first."""
    found = [(path, int(path.name[6:])) for path in folder.glob("round-*") if path.name[6:].isdecimal()]
    return sorted(found, key=lambda checkpoint: checkpoint[1])


def _is_whole(path: Path, expected: FileRecord) -> bool:
    try:
        return path.is_file() and _record(path) == expected
    except OSError:
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
        reason = " ".join(str(error).split())[:200]
        raise FlgenError(f"checkpoint {path} cannot be written ({reason}): free some space") from error


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.name, path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()[:32])


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a crafted file makes the loader raise has no end
        raise FlgenError(f"checkpoint file {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
