"""Checkpoints: a folder per round, complete or not there at all.

    checkpoints/round-00010/manifest.json      what it is, with size and digest of every file
    checkpoints/round-00010/server.pt          the server's state
    checkpoints/round-00010/clients-00000.pt   the states of the clients that rank 0 hosted, and so on

It is written under a temporary name and renamed when every file is on disk. Files are read with
`weights_only=True`; a folder whose manifest does not fit its files is never chosen.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flgen.errors import FlgenError
from flgen.experiment.plain_values import json_value
from flgen.experiment.runs import AUTO

log = logging.getLogger("flgen")

FORMAT = 1

DIGEST = "blake2b"
"""Key of a manifest's own digest, of everything else in it; earlier versions wrote none."""

_FILE_NAME = re.compile(r"[a-z0-9-]+\.pt")


class UnknownFormatError(FlgenError):
    """A checkpoint is of another version of flgen."""


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
        """Return what the server saved.

        Raises:
            FlgenError: It is missing, or holds something else.
        """
        state = _read(self.path / "server.pt")
        if not isinstance(state, dict):
            raise FlgenError(f"checkpoint file {self.path / 'server.pt'} holds no state of a server: use another one")
        return state

    def client_states(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return every client's state by id, memory-mapped: only what is used is read.

        Raises:
            FlgenError: A file holds something else.
        """
        states: dict[int, dict[str, torch.Tensor]] = {}
        for record in self.files:
            if record.name.startswith("clients-"):
                found = _read(self.path / record.name)
                if not _are_states(found):
                    raise FlgenError(
                        f"checkpoint file {self.path / record.name} holds no states of clients: use another one"
                    )
                states.update(found)
        return states

    @contextmanager
    def taken_up(self) -> Iterator[None]:
        """Let a run put the states where they belong; that they do not fit is this checkpoint's fault.

        Raises:
            FlgenError: They do not.
        """
        try:
            yield
        except FlgenError:
            raise
        except Exception as error:  # what loading a state of another shape raises has no common class
            raise FlgenError(
                f"checkpoint {self.path} cannot be taken up, its states are not those of this run "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): use another one"
            ) from error


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
        FlgenError: It cannot be written; nothing of it is left.
    """
    path = partial / name
    try:
        with _writing(path):
            with path.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            return _record(path)
    except FlgenError:
        # On a full disk the half of a file is what keeps everything else from being written.
        path.unlink(missing_ok=True)
        raise


def finish_checkpoint(partial: Path, round: int, identity: dict[str, Any], files: list[FileRecord]) -> Path:
    """Write the manifest and give the checkpoint its name; returns the final folder.

    Checkpoints of later rounds are removed: they belong to a course of the run that was left to go on from an
    earlier one, and `last` must not find them.

    Raises:
        FlgenError: It cannot be written.
    """
    manifest = {"format": FORMAT, "round": round, "identity": identity, "files": [asdict(file) for file in files]}
    manifest[DIGEST] = _digest(manifest)
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
        manifest = json_value(manifest_path.read_bytes())
        files = tuple(FileRecord(**record) for record in manifest["files"])
        if type(manifest["round"]) is not int or manifest["round"] < 0:
            raise ValueError("its round is no number")
        checkpoint = Checkpoint(path, manifest["round"], dict(manifest["identity"]), files)
        known = manifest["format"] == FORMAT
        outside = [file.name for file in files if not _FILE_NAME.fullmatch(file.name)]
        written = manifest.pop(DIGEST, None)
        changed = written is not None and written != _digest(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlgenError(f"checkpoint {path} is damaged: its manifest.json cannot be read ({error})") from error
    if changed:
        raise FlgenError(f"checkpoint {path} is damaged: its manifest.json is not what was written; use an older one")
    if not known:
        raise UnknownFormatError(
            f"checkpoint {path} has format {manifest['format']!a:.40}, this flgen reads format {FORMAT}: use the flgen "
            "that wrote it"
        )
    if outside:
        raise FlgenError(
            f"checkpoint {path} is damaged: its manifest.json names {outside[0]!a:.80}, outside its folder"
        )
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
    newest = _newest_good(folder)
    if newest is None:
        anew = ", or start anew in this one with --ckpt_path auto" if run_dir is not None else ""
        raise FlgenError(f"no usable checkpoint in {folder}: name another run{anew}")
    return newest


def checkpoint_to_continue(ckpt_path: str | Path | None, run_dir: Path) -> Checkpoint | None:
    """Return the checkpoint that a run begins with, None if it starts afresh.

    Args:
        ckpt_path: As `find_checkpoint` takes it; `auto`, the newest good one of `run_dir` if it has one; or None.
        run_dir: The run's folder.

    Raises:
        FlgenError: There is no such checkpoint, or the one that was named is damaged.
    """
    if ckpt_path is None:
        return None
    if str(ckpt_path) == AUTO:
        return _newest_good(run_dir / "checkpoints")
    return find_checkpoint(ckpt_path, run_dir)


def _newest_good(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a folder that is not damaged; damaged ones are named on the way."""
    for candidate, _ in reversed(_by_round(folder)):
        try:
            return open_checkpoint(candidate)
        except UnknownFormatError:
            raise  # it may be good: to start afresh would take its place
        except FlgenError as error:
            log.warning("%s; trying the one before", str(error).partition("; ")[0])
    return None


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
        full = isinstance(error, RuntimeError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "let this run write there, or choose another --run_dir"
        raise FlgenError(f"checkpoint {path} cannot be written ({reason}): {remedy}") from error


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.name, path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()[:32])


def _digest(manifest: dict[str, Any]) -> str:
    read_again = json.loads(json.dumps(manifest))  # keys are texts then, in whatever order
    return hashlib.blake2b(json.dumps(read_again, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a crafted file makes the loader raise has no end
        raise FlgenError(f"checkpoint file {path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _are_states(found: Any) -> bool:
    """Whether a file held tensors by name by client."""
    return isinstance(found, dict) and all(
        type(client) is int
        and isinstance(state, dict)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items())
        for client, state in found.items()
    )
