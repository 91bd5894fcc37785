"""Rows of class pictures are read as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from flgen.errors import FlgenError
from flgen.figures.picture_row import picture_row, read_picture_row
from flgen.figures.sample_grid import save_png


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path: Path, channels: int) -> None:
    draws = torch.Generator().manual_seed(0)
    pictures = {label: torch.randint(0, 256, (channels, 3, 2), dtype=torch.uint8, generator=draws) for label in (3, 1)}
    save_png(picture_row(pictures, 5), tmp_path / "row.png")
    read = read_picture_row(tmp_path / "row.png", 5)
    assert sorted(read) == [1, 3]
    for label, picture in pictures.items():
        assert (read[label] == picture.expand(3, 3, 2).permute(1, 2, 0).numpy()).all()


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    save_png(picture_row({0: torch.zeros(1, 2, 2, dtype=torch.uint8)}, 3), tmp_path / "three.png")
    Image.new("L", (6, 2)).save(tmp_path / "opaque.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "three.png").read_bytes()[:40])
    with pytest.raises(
        FlgenError, match=r"three.png is no row of 4 class pictures: remove it, or choose other --rounds"
    ):
        read_picture_row(tmp_path / "three.png", 4)
    with pytest.raises(FlgenError, match=r"opaque.png is no row of 3 class pictures"):
        read_picture_row(tmp_path / "opaque.png", 3)
    with pytest.raises(FlgenError, match=r"torn.png cannot be read \(.+\): remove it"):
        read_picture_row(tmp_path / "torn.png", 3)
