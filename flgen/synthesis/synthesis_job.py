"""Generating a set of samples on all ranks, so that it can be stopped at any moment and taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.synthesis.sample_store import FORMAT, VERSION, SampleStore, read_index
from flgen.synthesis.samples import LabelledPrompt, SampleRequest
from flgen.synthesis.synthesizer import Synthesizer

if TYPE_CHECKING:
    from flgen.federation.interruption import StopRequest
    from flgen.topology.channel import Channel

MOST_DIFFERENCES = 3


class Progress(Protocol):
    """What is told how far the work has come."""

    def start(self, done: int, total: int, own: int) -> None:
        """Begin: so many samples of all are there, and so many are this process's to make."""

    def advance(self) -> None:
        """One more is kept."""

    def close(self) -> None:
        """No more come."""


class SynthesisResult(NamedTuple):
    """How a synthesis ended.

    Args:
        made: Samples that all ranks made this time.
        kept: Samples that are there.
        signal_number: The signal that ended it early, 0 if all are there.
    """

    made: int
    kept: int
    signal_number: int


@dataclass(frozen=True)
class SynthesisJob:
    """A set of samples to generate.

    Args:
        folder: Where to keep it.
        synthesizer: What makes the samples.
        class_names: The classes, in the order of their ids.
        prompts: The prompts that the requests are from.
        requests: One per sample.
        seed: The run's seed.
        samples_per_shard: Samples that make a shard.
    """

    folder: Path
    synthesizer: Synthesizer
    class_names: Sequence[str]
    prompts: Sequence[LabelledPrompt]
    requests: Sequence[SampleRequest]
    seed: int
    samples_per_shard: int = 1000

    @property
    def per_class(self) -> int:
        """Samples of each class."""
        return len(self.requests) // len(self.class_names)

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on; not how many there are, for more of them are a superset."""
        prompts = [[prompt.id, prompt.class_id, prompt.prompt] for prompt in self.prompts]
        return {
            "seed_everything": self.seed,
            "classes": list(self.class_names),
            "prompts": _digest(prompts),
            "synthesizer": self.synthesizer.identity(),
        }

    def check_folder(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the folder's index; None if it has none yet.

        Args:
            identity: What `identity()` returns, which may take a moment.

        Raises:
            UsageError: If the folder holds samples of other options, or files of somebody else.
        """
        index = read_index(self.folder)
        if index is None:
            strangers = self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir())
            if strangers and not (self.folder / "partial").is_dir():
                raise UsageError(f"--output {self.folder}: there are other files in it; give a new folder")
            return None
        ours, theirs = dict(_leaves(identity)), dict(_leaves(index["identity"]))
        if ours != theirs:
            if not SampleStore(self.folder, 0, self.samples_per_shard).has_samples():
                return None  # such as of a checkpoint that could not be loaded
            names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            said = [f"{name} {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in names]
            more = f" and {len(said) - MOST_DIFFERENCES} more" if len(said) > MOST_DIFFERENCES else ""
            raise UsageError(
                f"--output {self.folder} has samples of other options ({'; '.join(said[:MOST_DIFFERENCES])}{more}); "
                "take them back, or give a new folder"
            )
        return index

    def is_complete(self, index: Mapping[str, Any] | None) -> bool:
        """Whether a folder with this index has all samples already."""
        return (
            index is not None
            and index["complete"]
            and index["per_class"] >= self.per_class
            and all((self.folder / shard["file"]).is_file() for shard in index["shards"])
        )

    def run(
        self, identity: Mapping[str, Any], channel: Channel, stop: StopRequest, progress: Progress
    ) -> SynthesisResult:
        """Make what is missing; on every rank.

        Args:
            identity: What `identity()` returns.
            channel: Through which the ranks wait for each other.
            stop: Looked at between batches.
            progress: Told of this rank's samples.

        Raises:
            FlgenError: If a sample cannot be made or kept; those made before are.
        """
        store = SampleStore(self.folder, channel.rank, self.samples_per_shard)
        first = channel.rank == 0
        with store.locked() if first else nullcontext():
            if first:
                self.check_folder(identity)
                store.recover()
                store.write_index(self._index(identity, store, complete=False))
            channel.agree("the folder is in order")
            kept = store.finished()
            channel.agree("everybody has looked at it")  # before anybody adds to it
            wanted = {request.id for request in self.requests}
            open_batches = [
                batch
                for batch in self.synthesizer.batches(self.requests)
                if not kept.issuperset(request.id for request in batch)
            ]
            share = open_batches[channel.rank :: channel.world_size]
            made = 0
            own = sum(request.id not in kept for batch in share for request in batch)
            progress.start(len(wanted & kept), len(wanted), own)
            try:
                for batch in share:
                    if stop:
                        break
                    for sample in self.synthesizer.synthesize(batch):
                        if sample.request.id not in kept:
                            store.add(sample)
                            made += 1
                            progress.advance()
            finally:
                progress.close()
            if not stop:
                store.seal()
            said = channel.agree((made, stop.signal_number))
            made = sum(number for number, _ in said)
            signal_number = next((number for _, number in said if number), 0)
            if first and not signal_number:
                store.list_other_shards()
                if lost := wanted - store.finished():
                    raise FlgenError(f"{self.folder} lacks {len(lost)} samples after all; run the command again")
                store.write_index(self._index(identity, store, complete=True))
            return SynthesisResult(made, len(wanted & kept) + made, signal_number)

    def _index(self, identity: Mapping[str, Any], store: SampleStore, *, complete: bool) -> dict[str, Any]:
        counts, shards = store.counts(len(self.class_names))
        earlier = read_index(self.folder) or {"per_class": 0}
        per_class = max(self.per_class, earlier["per_class"]) if min(counts) >= earlier["per_class"] else self.per_class
        return {
            "format": FORMAT,
            "version": VERSION,
            "modality": self.synthesizer.modality,
            "class_names": list(self.class_names),
            "per_class": per_class,
            "complete": complete,
            "samples": sum(counts),
            "counts": counts,
            "shards": shards,
            "key": _digest({"identity": identity, "per_class": per_class}),
            "identity": identity,
        }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested configuration with their names as they are typed."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            inside = name if key in ("init_args", "class_path") else f"{name}.{key}".lstrip(".")
            yield from _leaves(below, inside)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
