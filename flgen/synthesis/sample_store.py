"""Where generated samples are kept: webdataset shards that a sudden end at any moment leaves usable.

    DIR/index.json                     what is made: options, classes, counts, the shards once all is done
    DIR/manifest.jsonl                 one line per sample in a shard
    DIR/shard-RRR-NNNNN.tar            shard N of process R: ID.png | ID.wav | ID.txt, ID.cls (class id), ID.json
    DIR/partial/ID.tar                 a finished sample that is in no shard yet: a shard of one

Every file is written under another name, synchronised, and renamed, so what has its name is whole. A sample is kept as
soon as it is made; when enough are kept they move to a shard, and only then leave `partial`. The manifest repeats what
the shards say, and whatever it lacks after a sudden end is read from them (specification of GPT-FL, 1.1).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import webdataset

from flgen.data.tar_members import shard_samples, tar_places
from flgen.errors import FlgenError
from flgen.experiment.plain_values import json_value
from flgen.experiment.records import atomic_replace
from flgen.synthesis.synthesizer import Sample

log = logging.getLogger("flgen")

FORMAT = "flgen-synthetic-samples"
VERSION = 1
EXTENSIONS = ("png", "jpg", "jpeg", "wav", "txt")
SHARD_NAME = re.compile(r"shard-(\d{3,})-(\d{5,})\.tar")
SAMPLE_ID = re.compile(r"\d{5,9}-\d{1,9}")
_OF_AN_INDEX = {"class_names": list, "per_class": int, "complete": bool, "shards": list, "identity": dict}
_MADE_ANEW = "run `flgen synthesize` again, which makes anew what is lost"
LOCK_TIMEOUT_S = 10.0  # a command that was just killed may hold the folder a moment longer


@dataclass(frozen=True)
class StoredSample:
    """A sample as it lies in a shard.

    Args:
        id: Its name.
        content: The sample file's bytes.
        extension: png, jpg, jpeg, wav or txt.
        facts: What its JSON says.
    """

    id: str
    content: bytes
    extension: str
    facts: dict[str, Any]


def write_shard(path: Path, samples: Iterable[StoredSample]) -> None:
    """Write samples as one tar file that has its name when it is whole.

    Raises:
        FlgenError: If it cannot be written.
    """
    with (
        atomic_replace(path) as temporary,
        temporary.open("wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0) as tar,
    ):
        for sample in samples:
            tar.write(
                {
                    "__key__": sample.id,
                    sample.extension: sample.content,
                    "cls": str(sample.facts["class_id"]).encode(),
                    "json": json.dumps(sample.facts, ensure_ascii=False).encode(),
                }
            )


def read_shard(path: Path) -> Iterator[StoredSample]:
    """Yield the samples of a tar file; nothing in it is ever unpickled.

    Raises:
        FlgenError: If it is missing or damaged, or a sample is not what its SHA-256 says.
    """
    try:
        for members in shard_samples(path):
            facts = json_value(members["json"])
            extension = next((name for name in EXTENSIONS if name in members), "sample file")
            content = members[extension]
            if hashlib.sha256(content).hexdigest() != facts["sha256"]:
                raise ValueError(f"sample {members['__key__']} has another SHA-256")
            if not SAMPLE_ID.fullmatch(members["__key__"]) or type(facts["class_id"]) is not int:
                raise ValueError(f"sample {members['__key__']!a:.80} is none of `flgen synthesize`")
            if facts["id"] != members["__key__"] or int(members["cls"]) != facts["class_id"] or facts["class_id"] < 0:
                raise ValueError(f"sample {members['__key__']} contradicts its JSON")
            yield StoredSample(facts["id"], content, extension, facts)
    except FileNotFoundError:
        raise FlgenError(f"{path} is missing; {_MADE_ANEW}") from None
    except KeyError as error:
        raise FlgenError(f"{path} is damaged (a sample without {error.args[0]}); {_MADE_ANEW}") from error
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FlgenError(f"{path} is damaged ({reason}); {_MADE_ANEW}") from error


def read_sample(path: Path, id: str) -> StoredSample:
    """Return one sample of a tar file.

    Raises:
        FlgenError: If it is not there, or damaged.
    """
    try:
        places = _places(path.resolve(), path.stat().st_mtime_ns)
        name = next(f"{id}.{extension}" for extension in EXTENSIONS if f"{id}.{extension}" in places)
        with path.open("rb") as file:
            content, facts = (_read_at(file, *places[member]) for member in (name, f"{id}.json"))
        described = json_value(facts)
        if hashlib.sha256(content).hexdigest() != described["sha256"]:
            raise ValueError(f"sample {id} has another SHA-256")
        return StoredSample(id, content, name.rpartition(".")[2], described)
    except (OSError, ValueError, TypeError, KeyError, StopIteration) as error:
        raise FlgenError(f"{path} is damaged ({error or f'no sample {id}'}); {_MADE_ANEW}") from error


@lru_cache(maxsize=256)
def _places(path: Path, modified_ns: int) -> dict[str, tuple[int, int]]:
    """Return offset and size, bytes, of every member of a tar file; the time of its last change makes it that file."""
    try:
        return tar_places(path)
    except (OSError, ValueError) as error:
        raise FlgenError(f"{path} cannot be read ({error}); {_MADE_ANEW}") from error


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


class SampleStore:
    """The samples of one folder, as one process adds to them.

    Args:
        folder: The folder.
        rank: Which process this is; the names of its shards hold it.
        samples_per_shard: Samples that make a shard.
    """

    def __init__(self, folder: Path, rank: int = 0, samples_per_shard: int = 1000) -> None:
        self.folder = folder
        self.rank = rank
        self.samples_per_shard = samples_per_shard
        self._kept: list[str] = []  # ids in `partial` that this process moves to a shard

    @property
    def manifest(self) -> Path:
        """One JSON line per sample in a shard."""
        return self.folder / "manifest.jsonl"

    @property
    def index(self) -> Path:
        """What the folder holds."""
        return self.folder / "index.json"

    @property
    def partial(self) -> Path:
        """Finished samples that are in no shard yet."""
        return self.folder / "partial"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands out of the folder inside the block; it is made if it is missing.

        Raises:
            FlgenError: If another command is at work there, or the folder cannot be made.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / ".lock", timeout=LOCK_TIMEOUT_S):
                yield
        except filelock.Timeout:
            raise FlgenError(f"{self.folder}: another `flgen synthesize` writes there; wait for it") from None
        except OSError as error:
            raise FlgenError(
                f"{self.folder} cannot be written to ({error.strerror}): choose another --output"
            ) from error

    def recover(self) -> None:
        """Bring the folder into order, whatever moment the last command ended at; for one process, before all others.

        What has no name yet goes, a sample that is in a shard leaves `partial`, a damaged file makes way for a new one,
        and the manifest lists again what the shards hold.
        """
        for unfinished in [*self.folder.glob(".*.tmp"), *self.partial.glob(".*.tmp")]:
            unfinished.unlink()
        listed: list[dict[str, Any]] = []
        place: dict[str, str] = {}
        for shard in self._shards():
            try:
                entries = _entries(shard)
            except FlgenError as error:
                log.warning("%s", error)
                shard.rename(shard.with_name(f"{shard.name}.damaged"))
                continue
            for entry in entries:
                first = place.setdefault(entry["id"], shard.name)
                if first != shard.name:
                    raise FlgenError(f"{self.folder}: {first} and {shard.name} both hold {entry['id']}; remove one")
            listed += entries
        text = _lines(listed)
        if not self.manifest.exists() or self.manifest.read_text(encoding="utf-8", errors="replace") != text:
            with atomic_replace(self.manifest) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for kept in sorted(self.partial.glob("*.tar")):
            try:
                damaged = [sample.id for sample in read_shard(kept)] != [kept.stem]
            except FlgenError:
                damaged = True
            if damaged or kept.stem in place:
                kept.unlink()
            else:
                self._kept.append(kept.stem)

    def has_samples(self) -> bool:
        """Whether there is any sample in the folder, in a shard or not."""
        return bool(self._shards()) or any(self.partial.glob("*.tar"))

    def finished(self) -> set[str]:
        """Return the ids of all samples that are kept, in shards or not."""
        return {entry["id"] for entry in read_manifest(self.folder)} | {
            kept.stem for kept in self.partial.glob("*.tar")
        }

    def add(self, sample: Sample) -> None:
        """Keep a sample; it is safe when this returns.

        Raises:
            FlgenError: If it cannot be written.
        """
        record = sample.record()
        write_shard(
            self.partial / f"{record['id']}.tar",
            [StoredSample(record["id"], sample.content, sample.extension, record)],
        )
        self._kept.append(record["id"])
        if len(self._kept) >= self.samples_per_shard:
            self.seal()

    def seal(self) -> None:
        """Move the samples that this process has kept into shards."""
        while self._kept:
            ids, self._kept = self._kept[: self.samples_per_shard], self._kept[self.samples_per_shard :]
            kept = [self.partial / f"{id}.tar" for id in ids]
            shard = self.folder / f"shard-{self.rank:03d}-{self._next_number():05d}.tar"
            write_shard(shard, (sample for path in kept for sample in read_shard(path)))
            _synchronise(self.folder)  # the shard's name is on disk before the first of its samples goes
            if self.rank == 0:
                self._list(_entries(shard))
            for path in kept:
                path.unlink()

    def list_other_shards(self) -> None:
        """Add what the other processes' shards hold to the manifest; for one process, after all have sealed."""
        known = {entry["shard"] for entry in read_manifest(self.folder)}
        for shard in self._shards():
            if shard.name not in known:
                self._list(_entries(shard))

    def counts(self, classes: int) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the samples of each class in shards, and the name and the number of samples of each shard."""
        of_class, of_shard = [0] * classes, dict.fromkeys((shard.name for shard in self._shards()), 0)
        for entry in read_manifest(self.folder):
            if entry["class_id"] >= classes or entry["shard"] not in of_shard:
                raise FlgenError(
                    f"{self.manifest} has sample {entry['id']}, which is of none of {classes} classes or in no shard; "
                    "take away what is not of this set"
                )
            of_class[entry["class_id"]] += 1
            of_shard[entry["shard"]] += 1
        return of_class, [{"file": name, "samples": samples} for name, samples in of_shard.items()]

    def write_index(self, content: dict[str, Any]) -> None:
        """Write index.json."""
        with atomic_replace(self.index) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _shards(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("shard-*.tar") if SHARD_NAME.fullmatch(path.name))

    def _next_number(self) -> int:
        taken = [SHARD_NAME.match(path.name) for path in self.folder.glob(f"shard-{self.rank:03d}-*")]
        return 1 + max((int(name[2]) for name in taken if name), default=-1)

    def _list(self, entries: list[dict[str, Any]]) -> None:
        with self.manifest.open("a", encoding="utf-8") as file:
            file.write(_lines(entries))
            file.flush()
            os.fsync(file.fileno())


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the manifest's entries: each sample's JSON, with its shard, its file in it, and when that was made.

    Raises:
        FlgenError: If there is none, or it is damaged.
    """
    path = folder / "manifest.jsonl"
    try:
        return [_entry(json_value(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise FlgenError(f"{path} is missing; give a folder that `flgen synthesize` wrote") from None
    except (OSError, ValueError) as error:
        raise FlgenError(f"{path} is damaged ({error}); run `flgen synthesize` again, which mends it") from error


def _entry(entry: Any) -> dict[str, Any]:
    """Return a line of a manifest, which must name a sample in a shard of its folder."""
    wanted = {"id": str, "class_id": int, "shard": str, "file": str}
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in wanted.items()):
        raise ValueError(f"a line without {', '.join(wanted)}")
    if not SAMPLE_ID.fullmatch(entry["id"]) or not SHARD_NAME.fullmatch(entry["shard"]) or entry["class_id"] < 0:
        raise ValueError(f"sample {entry['id']!a:.80} in {entry['shard']!a:.80} is none of `flgen synthesize`")
    return entry


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return index.json, None if there is none.

    Raises:
        FlgenError: If it is damaged.
    """
    path = folder / "index.json"
    try:
        content = json_value(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {content['format']!s:.40} {content['version']!s:.40} is not {FORMAT} {VERSION}")
        for name, kind in _OF_AN_INDEX.items():
            if type(content[name]) is not kind:
                raise ValueError(f"its {name} is {content[name]!a:.40}")
        if not all(isinstance(name, str) for name in content["class_names"]) or content["per_class"] < 0:
            raise ValueError("its class_names are no texts, or its per_class is negative")
        if not all(isinstance(one, dict) and SHARD_NAME.fullmatch(str(one.get("file"))) for one in content["shards"]):
            raise ValueError("its shards are none of its folder")
        return dict(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlgenError(f"{path} is damaged ({error}); remove it with its folder, or give another --output") from error


def _entries(shard: Path) -> list[dict[str, Any]]:
    created = datetime.fromtimestamp(shard.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return [
        {**sample.facts, "shard": shard.name, "file": f"{sample.id}.{sample.extension}", "created": created}
        for sample in read_shard(shard)
    ]


def _lines(entries: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _synchronise(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
