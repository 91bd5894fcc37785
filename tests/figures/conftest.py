"""What the tests of figures for papers look at: the size of a PNG, the words of an SVG, the figure itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture
def inches_of() -> Callable[[Path], tuple[float, float]]:
    """Return a function that gives the width and height of a PNG for print."""

    def inches(path: Path) -> tuple[float, float]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            return image.width / 300, image.height / 300

    return inches


@pytest.fixture
def words_of() -> Callable[[Path], list[str]]:
    """Return a function that gives the texts of an SVG, in the order in which they are drawn."""

    def words(path: Path) -> list[str]:
        root = ElementTree.parse(path).getroot()
        return ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]

    return words


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return the list that every figure joins, once, in place of being saved."""
    seen: list[Figure] = []

    def remember(figure: Figure, path: Path, **options: object) -> None:
        path.touch()
        if figure not in seen:
            seen.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen
