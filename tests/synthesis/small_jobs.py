"""Small syntheses in this process or a fork of it: formulas in place of models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from requests_of import NAMES, PROMPTS, some_requests

from flgen.federation.interruption import StopRequest
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.sample_store import read_manifest, read_shard
from flgen.synthesis.samples import SampleRequest
from flgen.synthesis.synthesis_job import SynthesisJob, SynthesisResult
from flgen.synthesis.synthesizer import Sample, Synthesizer
from flgen.topology.channel import Channel


class Pairs(Procedural):
    """Makes two images at a time, of equal guidance, as slowly as it is told; counts what it makes."""

    guidance = "integers"
    batch_size = 2
    incidental = Procedural.incidental | {"pause_s"}

    def __init__(self, size: int = 8, pause_s: float = 0.0) -> None:
        super().__init__("image", size, 1)
        self.pause_s = pause_s
        self.made: list[str] = []

    def batch_key(self, request: SampleRequest) -> float | None:
        return request.guidance

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        time.sleep(self.pause_s)
        self.made += [request.id for request in requests]
        return super().make_batch(requests)


class Quiet:
    """A progress display that shows nothing, and can ask to stop after some samples."""

    def __init__(self, stop: StopRequest | None = None, after: int = 0) -> None:
        self.stop, self.after, self.advanced = stop, after, 0
        self.started: tuple[int, int, int] | None = None

    def start(self, done: int, total: int, own: int) -> None:
        self.started = done, total, own

    def advance(self) -> None:
        self.advanced += 1
        if self.stop is not None and self.advanced == self.after:
            self.stop.signal_number = 15

    def close(self) -> None:
        pass


def small_job(
    folder: Path, synthesizer: Synthesizer | None = None, per_class: int = 12, **options: Any
) -> SynthesisJob:
    options = {"seed": 1, "samples_per_shard": 5, **options}
    synthesizer = synthesizer or Pairs()
    requests = some_requests(per_class, synthesizer.guidance, options["seed"])
    return SynthesisJob(folder, synthesizer, NAMES, PROMPTS, requests, **options)


def run_job(job: SynthesisJob, progress: Any = None, stop: StopRequest | None = None) -> SynthesisResult:
    channel = Channel(0, 1, torch.device("cpu"), 60, 60)
    return job.run(job.identity(), channel, StopRequest() if stop is None else stop, progress or Quiet())


def stored(folder: Path) -> dict[str, bytes]:
    """Return the content of every sample of a finished folder by id, after checking that the manifest agrees."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("shard-*.tar")):
        for sample in read_shard(shard):
            assert sample.id not in found, f"{sample.id} is there twice"
            found[sample.id] = sample.content
    listed = [entry["id"] for entry in read_manifest(folder)]
    assert sorted(listed) == sorted(found)
    assert not list((folder / "partial").iterdir())
    assert not list(folder.glob(".*.tmp"))
    return found
