"""`flgen plot pairs`: what clients were sent of each class, over rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flgen.cli import main
from flgen.experiment.records import write_partition
from flgen.figures.picture_row import picture_row
from flgen.figures.sample_grid import save_png


def pairs_run(folder: Path, rounds: Any, names: list[str], absent: int | None = None) -> Path:
    """Write a run whose picture of class c after round t is grey level t + c."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    write_partition(folder / "partition.csv", np.ones((2, len(names)), dtype=np.int64), names)
    for t in rounds:
        pictures = {
            label: torch.full((1, 4, 4), t + label, dtype=torch.uint8) for label in range(len(names)) if label != absent
        }
        save_png(picture_row(pictures, len(names)), folder / "pairs" / f"round-{t:05d}.png")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the figure would have been drawn of."""
    from flgen.figures import class_pictures

    seen: dict[str, Any] = {}

    def remember(rows: Any, names: Any, output: str, *, note: str) -> tuple[()]:
        levels = {t: {label: int(tile[0, 0, 0]) for label, tile in tiles.items()} for t, tiles in rows.items()}
        seen.update(rows=levels, names=names, output=output, note=note)
        return ()

    monkeypatch.setattr(class_pictures, "draw_class_pictures", remember)
    return seen


def test_rounds_are_rows_and_classes_are_columns(here, capfd) -> None:
    pairs_run(Path("run"), (1, 2, 3), ["cat", "dog", "tree frog"], absent=1)
    assert main(["plot", "pairs", "run"]) == 0
    assert capfd.readouterr().out == "png: pairs.png\nsvg: pairs.svg\n"
    svg = Path("pairs.svg").read_text()
    for text in ("cat", "dog", "tree frog", "1", "2", "3", "after round"):
        assert f">{text}</text>" in svg


def test_absent_classes_are_left_out_of_their_cells(here, drawn) -> None:
    pairs_run(Path("run"), (1, 2), ["a", "b", "c"], absent=1)
    assert main(["plot", "pairs", "run", "--output", "x.png"]) == 0
    assert drawn == {
        "rows": {1: {0: 1, 2: 3}, 2: {0: 2, 2: 4}},
        "names": {0: "a", 1: "b", 2: "c"},
        "output": "x.png",
        "note": "",
    }


def test_of_many_rounds_eight_are_drawn_evenly(here, drawn) -> None:
    pairs_run(Path("run"), range(1, 61), ["a"])
    assert main(["plot", "pairs", "run"]) == 0
    assert list(drawn["rows"]) == [1, 9, 17, 26, 34, 43, 51, 60]
    assert main(["plot", "pairs", "run", "--rounds", "60", "5", "5"]) == 0
    assert list(drawn["rows"]) == [5, 60]


def test_of_many_classes_twenty_are_drawn_and_that_is_said(here, drawn, capfd) -> None:
    pairs_run(Path("run"), [1], [f"c{label}" for label in range(100)])
    assert main(["plot", "pairs", "run"]) == 0
    assert capfd.readouterr().out == "the first 20 of 100 classes; --classes names others\n"
    assert drawn["note"] == "the first 20 of 100 classes"
    assert list(drawn["names"]) == list(range(20))
    assert main(["plot", "pairs", "run", "--classes", "c99", "c7"]) == 0
    assert drawn["names"] == {99: "c99", 7: "c7"}
    assert drawn["note"] == ""


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["plain"], 1, "plain has no pictures of classes (pairs/round-*.png): choose a run of a method whose server "),
        (["nowhere"], 1, "nowhere: there is no such folder"),
        (["run", "--rounds", "4"], 2, "--rounds 4: run/pairs has no such round, the nearest is 3; it has one per eval"),
        (["run", "--rounds", "x"], 2, "flgen plot pairs: argument --rounds: invalid int value: 'x'"),
        (["run", "--classes", "dgo"], 2, "--classes dgo: the run has no such class; did you mean dog?"),
        (["run", "--classes", "xyz"], 2, "--classes xyz: the run has no such class; there are cat, dog"),
        (["run", "--output", "a.pdf"], 2, "--output a.pdf: a figure is saved as PNG and SVG"),
        (["torn"], 1, "torn/pairs/round-00001.png is no row of 3 class pictures: remove it, or choose other --rounds"),
        ([], 2, "flgen plot pairs: the following arguments are required: RUN"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, arguments, status, line) -> None:
    pairs_run(Path("run"), (1, 3), ["cat", "dog"])
    pairs_run(Path("plain"), (), ["cat"])
    write_partition(pairs_run(Path("torn"), [1], ["a"]) / "partition.csv", np.ones((1, 3), dtype=np.int64), list("abc"))
    assert refusal("pairs", *arguments, status=status).startswith(line)
    assert not list(here.glob("*.png"))
