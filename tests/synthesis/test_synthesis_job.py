"""Syntheses that are stopped, killed, broken at every step, and taken up again: no sample twice, none missing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from small_jobs import Pairs, Quiet, run_job, small_job, stored

from flgen.errors import FlgenError, UsageError
from flgen.federation.interruption import StopRequest
from flgen.synthesis import sample_store
from flgen.synthesis.procedural import Procedural
from flgen.synthesis.sample_store import read_index, read_manifest

FORKS = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "set"
    assert run_job(small_job(folder)) == (24, 24, 0)
    return stored(folder)


def test_a_set_has_every_sample_once(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert sorted(undisturbed) == [f"{c:05d}-{n:07d}" for c in range(2) for n in range(12)]
    assert len(set(undisturbed.values())) == 24
    run_job(small_job(tmp_path / "set"))
    index = read_index(tmp_path / "set")
    assert index is not None
    assert index["complete"]
    assert (index["samples"], index["counts"], index["per_class"]) == (24, [12, 12], 12)
    assert sum(shard["samples"] for shard in index["shards"]) == 24
    assert max(shard["samples"] for shard in index["shards"]) == 5
    entry = read_manifest(tmp_path / "set")[0]
    assert {"id", "class_id", "label", "prompt", "prompt_id", "seed", "sha256", "shard", "file", "created"} <= set(
        entry
    )


@pytest.mark.parametrize("after", [1, 7, 8, 23])
def test_a_stopped_synthesis_goes_on_to_the_same_bytes(
    after: int, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    stop = StopRequest()
    result = run_job(small_job(tmp_path / "set"), Quiet(stop, after), stop)
    assert result.signal_number == 15
    assert after <= result.kept <= after + 1  # the batch is finished
    again = Pairs()
    progress = Quiet()
    assert run_job(small_job(tmp_path / "set", again), progress) == (24 - result.kept, 24, 0)
    assert progress.started == (result.kept, 24, 24 - result.kept)
    assert len(again.made) <= 24 - result.kept + 1  # what is there is not made again, but for the rest of a batch
    assert stored(tmp_path / "set") == undisturbed


class _Death(BaseException):
    """The process ends here; nothing catches it."""


@pytest.mark.parametrize("step", range(1, 110, 6))
def test_a_death_at_any_write_rename_or_removal_loses_nothing(
    step: int, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(10_000))

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise _Death
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for module, name in (
            (os, "replace"),
            (os, "fsync"),
            (Path, "unlink"),
            (sample_store, "_lines"),
        ):
            patched.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(_Death):
            run_job(small_job(tmp_path / "set"))
    run_job(small_job(tmp_path / "set"))
    assert stored(tmp_path / "set") == undisturbed


def _run_slowly(folder: Path) -> None:
    run_job(small_job(folder, Pairs(pause_s=0.02)))


def test_a_process_killed_at_random_moments_finishes_to_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    draws, kills = random.Random(5), 0
    folder = tmp_path / "set"
    for _ in range(30):
        process = FORKS.Process(target=_run_slowly, args=(folder,))
        process.start()
        process.join(draws.uniform(0.02, 0.12))
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(timeout=20)
        if process.exitcode == 0:
            break
    assert kills >= 3
    run_job(small_job(folder))
    assert stored(folder) == undisturbed


@pytest.mark.parametrize("damage", ["torn line", "no manifest", "garbage", "line twice"])
def test_a_damaged_manifest_is_read_from_the_shards_again(
    damage: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    stop = StopRequest()
    run_job(small_job(folder), Quiet(stop, 13), stop)
    manifest = folder / "manifest.jsonl"
    text = manifest.read_text()
    if damage == "no manifest":
        manifest.unlink()
    else:
        first = text.splitlines()[0]
        manifest.write_text({"torn line": text[:-20], "garbage": "%%" + text, "line twice": text + first}[damage])
    again = Pairs()
    run_job(small_job(folder, again))
    assert len(again.made) <= 12
    assert stored(folder) == undisturbed


def test_a_damaged_shard_is_put_aside_and_its_samples_are_made_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    stop = StopRequest()
    run_job(small_job(folder), Quiet(stop, 13), stop)
    shard = folder / "shard-000-00000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    shard.write_bytes(content)
    run_job(small_job(folder))
    assert (folder / "shard-000-00000.tar.damaged").is_file()
    assert stored(folder) == undisturbed


def test_a_damaged_sample_that_is_in_no_shard_yet_is_made_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    stop = StopRequest()
    run_job(small_job(folder), Quiet(stop, 3), stop)
    first, second = sorted((folder / "partial").glob("*.tar"))[:2]
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    run_job(small_job(folder))
    assert stored(folder) == undisturbed


def test_more_per_class_keeps_what_is_there(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    run_job(small_job(folder, per_class=5))
    small = stored(folder)
    key = (read_index(folder) or {})["key"]
    assert run_job(small_job(folder)) == (14, 24, 0)
    assert stored(folder) == undisturbed
    assert small.items() <= undisturbed.items()
    assert (read_index(folder) or {})["key"] != key
    assert small_job(folder, per_class=5).is_complete(read_index(folder))
    assert not small_job(folder, per_class=13).is_complete(read_index(folder))


def test_a_lost_shard_is_noticed_and_made_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    run_job(small_job(folder))
    (folder / "shard-000-00001.tar").unlink()
    assert not small_job(folder).is_complete(read_index(folder))
    assert run_job(small_job(folder)) == (5, 24, 0)
    assert stored(folder) == undisturbed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"synthesizer": Pairs(size=16)}, r"synthesizer\.size 8, now 16"),
        ({"seed": 2}, r"seed_everything 1, now 2"),
        ({"synthesizer": Procedural("audio")}, r"synthesizer"),
    ],
)
def test_other_options_are_refused_in_the_same_folder(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    run_job(small_job(tmp_path / "set", per_class=1))
    with pytest.raises(UsageError, match=rf"--output .*set has samples of other options \(.*{named}.*new folder"):
        run_job(small_job(tmp_path / "set", per_class=1, **changed))


def test_a_folder_without_any_sample_takes_other_options(tmp_path: Path) -> None:
    folder, stop = tmp_path / "set", StopRequest()
    stop.receive(15)
    assert run_job(small_job(folder, per_class=1), stop=stop).made == 0
    assert read_index(folder) is not None
    run_job(small_job(folder, per_class=1, seed=2))
    assert (read_index(folder) or {})["identity"]["seed_everything"] == 2


def test_how_the_work_is_done_may_change(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    stop = StopRequest()
    run_job(small_job(folder), Quiet(stop, 9), stop)
    run_job(small_job(folder, Pairs(pause_s=0.001), samples_per_shard=3))
    assert stored(folder) == undisturbed


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="there are other files in it"):
        small_job(tmp_path).check_folder({})


def _hold(folder: Path, holding: Any, release: Any) -> None:
    with sample_store.SampleStore(folder).locked():
        holding.set()
        release.wait(20)


def test_two_commands_cannot_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_store, "LOCK_TIMEOUT_S", 0.2)
    holding, release = FORKS.Event(), FORKS.Event()
    process = FORKS.Process(target=_hold, args=(tmp_path / "set", holding, release))
    process.start()
    assert holding.wait(20)
    started = time.monotonic()
    with pytest.raises(FlgenError, match="another `flgen synthesize` writes there"):
        run_job(small_job(tmp_path / "set"))
    assert time.monotonic() - started < 10
    release.set()
    process.join(timeout=20)
    assert process.exitcode == 0
