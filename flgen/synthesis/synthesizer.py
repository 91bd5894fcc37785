"""What every generator has in common: `synthesize(requests)` yields samples, whatever makes them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING
from flgen.experiment.config import describe
from flgen.synthesis.samples import Guidance, SampleRequest

if TYPE_CHECKING:
    import torch

Modality = Literal["image", "audio", "text"]


@dataclass(frozen=True)
class Sample:
    """A generated sample as a file.

    Args:
        request: What was asked for.
        content: The file's bytes.
        extension: How its name ends, without the dot: png, wav, txt.
        facts: How it was made: steps, scheduler, height and width or seconds and sample_rate, speaker_id, provider,
            model, revision. What it says of seed or guidance stands in place of the request's; null is "had no part".
    """

    request: SampleRequest
    content: bytes
    extension: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what the sample's JSON holds (specification 1.1, manifest record)."""
        asked = self.request
        return {
            "id": asked.id,
            "class_id": asked.class_id,
            "label": asked.label,
            "prompt": asked.prompt,
            "prompt_id": asked.prompt_id,
            "seed": asked.seed,
            "guidance": asked.guidance,
            **self.facts,
            "sha256": hashlib.sha256(self.content).hexdigest(),
        }


class Synthesizer(ABC):
    """A generator of labelled samples.

    A generator of your own defines `make_batch` and, if it has weights, loads them at the first batch onto `device`. It
    keeps each option as an attribute of the same name.
    """

    modality: Modality = "image"
    """What it makes."""

    remote: ClassVar[bool] = False
    """Whether the work is done elsewhere, so that further processes here would not help."""

    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size", "local_files_only"})
    """Options that say how the work is done, not what comes out."""

    guidance: Guidance = "pipeline"
    batch_size: int = 1
    device: torch.device | str = "cpu"

    def batches(self, requests: Sequence[SampleRequest]) -> list[list[SampleRequest]]:
        """Group requests into what is generated together: equal `batch_key`, in order, at most `batch_size`.

        Since batches come from the requests alone, a sample has the same company, and so the same bits, in every run.
        """
        open_batches: dict[Hashable, list[SampleRequest]] = {}
        grouped: list[list[SampleRequest]] = []
        for request in requests:
            key = self.batch_key(request)
            batch = open_batches.get(key)
            if batch is None or len(batch) == self.batch_size:
                batch = open_batches[key] = []
                grouped.append(batch)
            batch.append(request)
        return grouped

    def batch_key(self, request: SampleRequest) -> Hashable:
        """Return what requests of one batch have in common."""
        return None

    def synthesize(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        """Yield one sample for each request, batch by batch.

        Raises:
            FlgenError: If weights are missing, or a generator fails.
        """
        for batch in self.batches(requests):
            yield from self.make_batch(batch)

    @abstractmethod
    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return the samples of one batch."""

    def check(self, requests: Sequence[SampleRequest]) -> None:  # noqa: B027  (many have nothing to check)
        """Make sure, before anything is loaded, that the requests can be met.

        Raises:
            UsageError: If they cannot, for what the options say.
            FlgenError: If they cannot, for what the files hold.
        """

    def files(self) -> list[Path]:
        """Return the local files and folders that the samples depend on."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on besides the requests: class, options, contents of files."""
        described = describe(self)
        options = {name: value for name, value in described["init_args"].items() if name not in self.incidental}
        contents = {str(path): content_digest(path) for path in self.files()}
        return {"class_path": described["class_path"], "init_args": options, "files": contents}


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder, in hexadecimal."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for child in sorted(path.rglob("*")):
        if child.is_file():
            digest.update(f"{child.relative_to(path).as_posix()}\0{content_digest(child)}\n".encode())
    return digest.hexdigest()
