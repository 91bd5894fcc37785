"""Samples that are there already: a folder per class, or an earlier set."""

from __future__ import annotations

from pathlib import Path

import pytest
from requests_of import some_requests
from small_jobs import Pairs, run_job, small_job, stored

from flgen.errors import FlgenError
from flgen.synthesis.ready_files import ReadyFiles
from flgen.synthesis.sample_store import read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.PNG").write_bytes(f"{label} {number}".encode())
        (tmp_path / label / "notes.txt").write_text("words")
    return tmp_path


def test_number_i_of_a_class_is_its_ith_file(folder: Path) -> None:
    generator = ReadyFiles(str(folder))
    generator.check(some_requests(3))
    samples = list(generator.synthesize(some_requests(3)))
    assert [sample.content.decode() for sample in samples] == [f"{n} {i}" for i in range(3) for n in ("cat", "dog")]
    record = samples[0].record()
    assert (record["source"], record["provider"], record["seed"]) == ("cat/0.PNG", "files", None)
    assert samples[0].extension == "png"
    assert ReadyFiles(str(folder), "text")._of_class("dog")[0].name == "notes.txt"


def test_too_few_files_are_said_before_anything_is_done(folder: Path) -> None:
    with pytest.raises(FlgenError, match=r"3 of the 4 files of class cat that are needed \(png, jpg, jpeg\)"):
        ReadyFiles(str(folder)).check(some_requests(4))
    with pytest.raises(FlgenError, match=r"--synthesizer.folder .*nowhere: there is no such folder"):
        ReadyFiles(str(folder / "nowhere")).check(some_requests(1))


def test_an_earlier_set_is_replayed_with_what_is_recorded_of_it(tmp_path: Path) -> None:
    run_job(small_job(tmp_path / "first", Pairs()))
    replay = ReadyFiles(str(tmp_path / "first"))
    job = small_job(tmp_path / "second", replay, per_class=7)
    replay.check(job.requests)
    run_job(job)
    first, second = stored(tmp_path / "first"), stored(tmp_path / "second")
    assert second == {id: content for id, content in first.items() if int(id[-7:]) < 7}
    placed = ("shard", "created")
    recorded = [
        {entry["id"]: {k: v for k, v in entry.items() if k not in placed} for entry in read_manifest(tmp_path / name)}
        for name in ("first", "second")
    ]
    assert recorded[1].items() <= recorded[0].items()
    with pytest.raises(FlgenError, match="12 of the 13 files of class"):
        ReadyFiles(str(tmp_path / "first")).check(some_requests(13))


def test_what_counts_is_what_the_folder_holds_and_not_where_it_lies(folder: Path, tmp_path: Path) -> None:
    before = ReadyFiles(str(folder)).identity()
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert ReadyFiles(str(moved)).identity() == before
    (moved / "cat" / "0.PNG").write_bytes(b"other")
    assert ReadyFiles(str(moved)).identity() != before
