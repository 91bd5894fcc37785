"""Pictures over rounds: which are chosen, how large they may be, and what is no picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_run

from flgen.figures.report import films as module
from flgen.figures.report.films import Film, evenly, films
from flgen.figures.report.runs import read_experiments


def films_of(run: Path) -> dict[str, Film]:
    sections = films(read_experiments({"run": [run]}))
    return {section.anchor: section.content["films"][0] for section in sections}


def grey(film: Film) -> list[int]:
    """Return the brightness of each picture, which of a written run is its round."""
    return [Image.open(io.BytesIO(frame.content)).convert("L").getpixel((0, 0)) for frame in film.frames]  # type: ignore[misc]


@pytest.mark.parametrize(("count", "most", "places"), [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [8]), (0, 3, [])])
def test_rounds_are_chosen_evenly_with_both_ends(count: int, most: int, places: list[int]) -> None:
    assert evenly(count, most) == places


def test_at_most_forty_rounds_and_the_caption_says_so(tmp_path: Path) -> None:
    film = films_of(write_run(tmp_path / "run", {"train/loss": [1.0]}, samples=range(1, 101)))["samples"]
    assert len(film.frames) == 40
    assert grey(film) == [frame.round for frame in film.frames]
    assert (film.frames[0].round, film.frames[-1].round) == (1, 100)
    assert film.note == "40 of 100 pictures, evenly chosen; all are in samples/ of the run folder"


def test_a_few_small_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]}, samples=(1, 5), pairs=(2,))
    found = films_of(run)
    assert found["samples"].frames[1].content == (run / "samples" / "round-00005.png").read_bytes()
    assert found["samples"].note == ""
    assert list(found["pairs"].names) == ["zero", "one", "two"]
    stored = json.loads(found["samples"].content)
    assert stored["rounds"] == [1, 5]
    assert all(picture.startswith("data:image/png;base64,") for picture in stored["pictures"])


def test_large_pictures_are_compressed_and_if_need_be_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]})
    (run / "samples").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
    for t, pixels in enumerate(noise, start=1):
        Image.fromarray(pixels).save(run / "samples" / f"round-{t:05d}.png")
    monkeypatch.setattr(module, "BUDGET", 40_000)
    film = films_of(run)["samples"]
    assert {frame.kind for frame in film.frames} == {"jpeg"}
    assert sum(len(frame.content) for frame in film.frames) <= 40_000
    assert 1 < len(film.frames) < 10
    assert film.frames[-1].round == 10
    assert film.note.startswith(f"{len(film.frames)} of 10 pictures, evenly chosen; compressed for this page; all are")


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]}, samples=(1, 2, 3), pairs=(1,))
    (run / "samples" / "round-00002.png").write_bytes((run / "samples" / "round-00003.png").read_bytes()[:45])
    (run / "samples" / "round-x.png").write_text("<svg/>")
    (run / "samples" / "round-00004.png").mkdir()
    (run / "pairs" / "round-00001.png").write_text("<svg onload=alert(1)>")
    found = films_of(run)
    assert [frame.round for frame in found["samples"].frames] == [1, 3]
    assert found["samples"].note == "1 cannot be read and is left out; all are in samples/ of the run folder"
    assert "pairs" not in found


def test_a_picture_that_claims_to_be_gigantic_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]}, samples=(1, 2))
    file = run / "samples" / "round-00002.png"
    content = bytearray(file.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    file.write_bytes(content)
    assert [frame.round for frame in films_of(run)["samples"].frames] == [1]
