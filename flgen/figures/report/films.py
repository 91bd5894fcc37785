"""Pictures over rounds, one at a time: sample grids, and what clients were sent of each class.

Pictures are most of the page's size, so they share a budget: at most `MOST_FRAMES` evenly chosen rounds of a run; what
is still too large is compressed, and what is even then too large has fewer rounds.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flgen.deferred import TYPE_CHECKING
from flgen.figures.report.plots import inside_script
from flgen.figures.report.runs import ReportedExperiment, ReportedRun, all_runs
from flgen.figures.report.section import Section

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_FRAMES = 40
BUDGET = 6_500_000  # bytes of all pictures of the page; base64 makes a third more of them
LONGEST_SIDE = 1024  # pixels of a compressed picture
JPEG_QUALITY = 82
PICTURE_NAME = re.compile(r"round-(\d{1,9})\.png")


class Frame(NamedTuple):
    """One picture.

    Args:
        round: When it was drawn.
        kind: "png" or "jpeg".
        content: The file.
        width: Pixels.
        height: Pixels.
    """

    round: int
    kind: str
    content: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture inside the page."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Film:
    """The pictures of one run, in the order of their rounds.

    Args:
        label: The run.
        frames: At least one.
        note: What was left out or compressed.
        names: Of the classes, where a picture is a row of them; empty where it is one picture.
    """

    label: str
    frames: Sequence[Frame]
    note: str
    names: Sequence[str] = ()

    @property
    def content(self) -> Markup:
        """Rounds and pictures as JSON that may stand inside a script element."""
        frames = {"rounds": [frame.round for frame in self.frames], "pictures": [frame.uri for frame in self.frames]}
        return inside_script(json.dumps(frames))


def films(experiments: Sequence[ReportedExperiment]) -> list[Section]:
    """Return the section on sample grids and the one on class pictures, of those that runs have."""
    runs = all_runs(experiments)
    grids = [run for run in runs if _pictures(run.folder.samples)]
    rows = [run for run in runs if run.partition is not None and _pictures(run.folder.pairs)]
    share = BUDGET // max(1, len(grids) + len(rows))
    sections = []
    for anchor, title, chosen, read in (
        ("samples", "Samples", grids, _grid_film),
        ("pairs", "Pictures sent per class", rows, _row_film),
    ):
        found = [film for run in chosen if (film := read(run, share)) is not None]
        if found:
            content = {"films": found, "anchor": anchor, "several": len(runs) > 1}
            sections.append(Section(anchor, title, "films.html", content))
    return sections


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the places 0 to count - 1, evenly spaced, with both ends."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return [place * (count - 1) // (most - 1) for place in range(most)]


def _grid_film(run: ReportedRun, budget: int) -> Film | None:
    return _film(run, run.folder.samples, budget, lambda frame: True)


def _row_film(run: ReportedRun, budget: int) -> Film | None:
    assert run.partition is not None
    names = run.partition[0]
    film = _film(run, run.folder.pairs, budget, lambda frame: frame.width % len(names) == 0, compress=False)
    return None if film is None else Film(film.label, film.frames, film.note, names)


def _film(
    run: ReportedRun, folder: Path, budget: int, fits: Callable[[Frame], bool], compress: bool = True
) -> Film | None:
    found = _pictures(folder)
    chosen = evenly(len(found), MOST_FRAMES)
    frames = [frame for place in chosen if (frame := _read(*found[place])) is not None and fits(frame)]
    damaged = len(chosen) - len(frames)
    if not frames:
        return None
    notes = []
    if compress and _bytes(frames) > budget:
        frames = [_compressed(frame) for frame in frames]
        notes.append("compressed for this page")
    if _bytes(frames) > budget:
        largest = max(len(frame.content) for frame in frames)
        frames = [frames[place] for place in evenly(len(frames), max(1, budget // largest))]
    if len(frames) + damaged < len(found):
        notes.insert(0, f"{len(frames)} of {len(found)} pictures, evenly chosen")
    if damaged:
        notes.append(f"{damaged} cannot be read and {'is' if damaged == 1 else 'are'} left out")
    notes = notes and [*notes, f"all are in {folder.name}/ of the run folder"]
    return Film(run.label, frames, "; ".join(notes))


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """Return the rounds and files of a folder of pictures, by ascending round."""
    names = [(PICTURE_NAME.fullmatch(path.name), path) for path in folder.glob("round-*.png")]
    return sorted((int(name[1]), path) for name, path in names if name is not None and path.is_file())


def _read(round: int, path: Path) -> Frame | None:
    """Return a picture; None if it is damaged, no PNG, or larger than a picture can be."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # type: ignore[operator]
                return None
            image.load()
            return Frame(round, "png", content, image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _compressed(frame: Frame) -> Frame:
    """Return a picture as a JPEG that is no longer than `LONGEST_SIDE`; itself if that is no smaller."""
    from PIL import Image

    with Image.open(io.BytesIO(frame.content), formats=("PNG",)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    small = Frame(frame.round, "jpeg", file.getvalue(), *shown.size)
    return small if len(small.content) < len(frame.content) else frame


def _bytes(frames: Sequence[Frame]) -> int:
    return sum(len(frame.content) for frame in frames)
