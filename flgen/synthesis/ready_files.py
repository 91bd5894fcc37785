"""Samples that are there already: files in a folder per class, or a set that `flgen synthesize` wrote before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from flgen.errors import FlgenError
from flgen.synthesis.samples import SampleRequest
from flgen.synthesis.synthesizer import Modality, Sample, Synthesizer

KINDS: dict[Modality, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg"),
    "audio": ("wav",),
    "text": ("txt",),
}
OPTION = "--synthesizer.folder"


class ReadyFiles(Synthesizer):
    """Takes samples from a folder instead of making them.

    Either `folder/CLASS NAME/*`, of which number i of a class is the i-th file in the order of the names, or a folder
    that `flgen synthesize` wrote, whose samples keep what is recorded of them (specification 3.6, replay).

    Args:
        folder: The folder.
        modality: What kind of files they are.
    """

    incidental: ClassVar[frozenset[str]] = Synthesizer.incidental | {"folder"}  # what counts is what it holds

    def __init__(self, folder: str, modality: Modality = "image") -> None:
        self.folder = folder
        self.modality = modality
        self._listed: dict[str, list[Path]] = {}

    @property
    def _path(self) -> Path:
        return Path(self.folder).expanduser()

    def files(self) -> list[Path]:
        """Return the folder."""
        return [self._path]

    def identity(self) -> dict[str, Any]:
        """Return class, kind of files and what the folder holds, wherever it lies."""
        described = super().identity()
        return {**described, "files": list(described["files"].values())}

    def check(self, requests: Sequence[SampleRequest]) -> None:
        """Make sure that there is a file for every request.

        Raises:
            FlgenError: If there are too few of a class.
        """
        if not self._path.is_dir():
            raise FlgenError(f"{OPTION} {self.folder}: there is no such folder; give one with a folder per class")
        wanted: dict[tuple[int, str], int] = {}
        for request in requests:
            key = request.class_id, request.label
            wanted[key] = max(wanted.get(key, 0), request.index + 1)
        for (class_id, label), count in wanted.items():
            if self._stored is not None:
                held = sum(stored_class == class_id for stored_class, _ in self._stored)
            else:
                held = len(self._of_class(label))
            if held < count:
                raise FlgenError(
                    f"{OPTION} {self.folder}: {held} of the {count} files of class {label} that are needed "
                    f"({', '.join(KINDS[self.modality])}); give --per_class {held} or more files"
                )

    @cached_property
    def _stored(self) -> dict[tuple[int, int], tuple[Path, str]] | None:
        """Shard and id by class and number, if the folder is one that `flgen synthesize` wrote."""
        if not (self._path / "manifest.jsonl").is_file():
            return None
        from flgen.synthesis.sample_store import read_manifest

        return {
            (entry["class_id"], int(entry["id"].rpartition("-")[2])): (self._path / entry["shard"], entry["id"])
            for entry in read_manifest(self._path)
        }

    def _of_class(self, label: str) -> list[Path]:
        if label not in self._listed:
            folder, kinds = self._path / label, KINDS[self.modality]
            files = folder.iterdir() if folder.is_dir() else iter(())
            self._listed[label] = sorted(file for file in files if file.suffix.lower().removeprefix(".") in kinds)
        return self._listed[label]

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return the file of each request."""
        return [self._replay(request) if self._stored is not None else self._take(request) for request in requests]

    def _take(self, request: SampleRequest) -> Sample:
        path = self._of_class(request.label)[request.index]
        facts = {"seed": None, "guidance": None, "provider": "files", "model": None, "revision": None}
        source = path.relative_to(self._path).as_posix()
        extension = path.suffix.lower().removeprefix(".")
        return Sample(request, path.read_bytes(), extension, {**facts, "source": source})

    def _replay(self, request: SampleRequest) -> Sample:
        from flgen.synthesis.sample_store import read_sample

        assert self._stored is not None, "only a stored set is replayed"
        shard, id = self._stored[request.class_id, request.index]
        stored = read_sample(shard, id)
        own = ("id", "class_id", "label", "sha256")
        return Sample(
            request,
            stored.content,
            stored.extension,
            {name: value for name, value in stored.facts.items() if name not in own},
        )
