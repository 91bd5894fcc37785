"""The contact sheet: every class is there, and the file stays small."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from flgen.errors import FlgenError
from flgen.figures.contact_sheet import GAP, MOST_BYTES, TEXT_WIDTH, draw_contact_sheet, picture_of


def noise(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(("classes", "columns"), [(2, 3), (10, 10), (102, 10)])
def test_even_pictures_of_noise_fit(classes: int, columns: int, tmp_path: Path) -> None:
    rows = {f"class {n}": [noise(n * columns + k) for k in range(columns)] for n in range(classes)}
    draw_contact_sheet(rows, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size <= MOST_BYTES
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > TEXT_WIDTH
        assert sheet.height >= classes * 12


def test_classes_are_rows_and_samples_are_columns(tmp_path: Path) -> None:
    colours = {"red": (255, 0, 0), "a name that is much too long for its column": (0, 0, 255)}
    draw_contact_sheet({name: [Image.new("RGB", (8, 8), c)] * 2 for name, c in colours.items()}, tmp_path / "s.png")
    sheet = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    side = (sheet.shape[0] - GAP) // 2 - GAP
    for row, colour in enumerate(colours.values()):
        top = GAP + row * (side + GAP)
        for column in range(2):
            left = TEXT_WIDTH + column * (side + GAP)
            assert np.array_equal(sheet[top + side // 2, left + side // 2], colour)
        assert (sheet[top : top + side, : TEXT_WIDTH - GAP] < 128).any()  # there is a name


def test_a_sound_is_drawn_as_its_spectrogram() -> None:
    buffer = io.BytesIO()
    seconds = np.arange(16000) / 16000
    wavfile.write(buffer, 16000, (20000 * np.sin(2 * np.pi * 2000 * seconds)).astype(np.int16))
    picture = np.asarray(picture_of(buffer.getvalue(), "wav"))
    dark = picture.mean(1).argmin()
    assert dark == pytest.approx(picture.shape[0] * (1 - 2000 / 8000), abs=2)  # low frequencies are at the foot


def test_a_file_that_cannot_be_drawn_is_one_line() -> None:
    for extension in ("png", "wav"):
        with pytest.raises(FlgenError, match=rf"this .{extension} file cannot be drawn"):
            picture_of(b"text", extension)
    with pytest.raises(ValueError, match="needs pictures"):
        draw_contact_sheet({"cat": []}, Path("nowhere.png"))
