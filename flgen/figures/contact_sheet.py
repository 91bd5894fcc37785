"""A contact sheet: some samples of each class in a row, with the name of the class, as a small PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace

MOST_BYTES = 200_000
MOST_PIXELS = 600_000  # that may fit into it, if the pictures are calm
GAP = 2  # pixels
TEXT_WIDTH = 96
TEXT_SIZE = 10
SIDES = (96, 64, 48, 32, 24, 16)  # pixels of a picture, the largest that the file can hold
COLOURS = 128
DYNAMIC_RANGE_DB = 70.0
WINDOW = 512


def draw_contact_sheet(rows: Mapping[str, Sequence[Image.Image]], path: Path) -> None:
    """Write a contact sheet of at most 200 kB: one row per class, smaller pictures or fewer columns where need be.

    Args:
        rows: Pictures by the name of their class.
        path: The PNG.

    Raises:
        FlgenError: If it cannot be written.
        ValueError: If there are no pictures.
    """
    columns = max((len(pictures) for pictures in rows.values()), default=0)
    if columns == 0:
        raise ValueError("a contact sheet needs pictures")
    content = b""
    while True:
        for side in SIDES:
            if len(rows) * columns * side * side > MOST_PIXELS and side > SIDES[-1]:
                continue  # hopeless, and slow to try
            content = _png(_sheet(rows, columns, side))
            if len(content) <= MOST_BYTES:
                break
        if len(content) <= MOST_BYTES or columns == 1:
            break
        columns = -(-columns // 2)
    if len(content) > MOST_BYTES:  # hundreds of classes: as many as there is room for
        names = list(rows)
        return draw_contact_sheet({name: rows[name] for name in names[: len(names) // 2]}, path)
    with atomic_replace(path) as temporary:
        temporary.write_bytes(content)


def _sheet(rows: Mapping[str, Sequence[Image.Image]], columns: int, side: int) -> Image.Image:
    step = max(side, TEXT_SIZE + 2) + GAP
    sheet = Image.new("RGB", (TEXT_WIDTH + columns * (side + GAP) + GAP, len(rows) * step + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for row, (name, pictures) in enumerate(rows.items()):
        top = GAP + row * step
        draw.text((GAP, top + (step - GAP - TEXT_SIZE) // 2 - 1), _fitting(name, font), fill="black", font=font)
        for column, picture in enumerate(pictures[:columns]):
            enlarges = picture.width < side  # blocks stay blocks: 8x8 pixels are to be seen as they are
            resampling = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
            small = picture.convert("RGB").resize((side, side), resampling)
            sheet.paste(small, (TEXT_WIDTH + column * (side + GAP), top))
    return sheet


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(name) > TEXT_WIDTH - 3 * GAP:
        name = name.rstrip("…")[:-1] + "…"
    return name


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.quantize(COLOURS).save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(content: bytes, extension: str) -> Image.Image:
    """Return an image file as it is, or a WAV file as a spectrogram: time to the right, frequency upwards.

    Args:
        content: The file's bytes.
        extension: png, jpg, jpeg or wav.

    Raises:
        FlgenError: If the file is damaged, or of another kind.
    """
    try:
        if extension == "wav":
            return _spectrogram(content)
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        picture.load()
        return picture
    except Exception as error:  # a damaged recording makes its reader raise nearly anything
        raise FlgenError(f"this .{extension} file cannot be drawn ({' '.join(str(error).split())})") from error


def _spectrogram(content: bytes) -> Image.Image:
    from scipy.io import wavfile
    from scipy.signal import spectrogram

    rate, waveform = wavfile.read(io.BytesIO(content))
    window = min(WINDOW, len(waveform))
    _, _, power = spectrogram(waveform.astype(np.float64), rate, nperseg=window, noverlap=window // 2)
    level = 10 * np.log10(np.maximum(power[::-1], 1e-20))  # dB (frequencies, frames), high ones first
    shade = np.clip((level - level.max()) / DYNAMIC_RANGE_DB + 1.0, 0.0, 1.0)
    return Image.fromarray((255 * (1.0 - shade)).round().astype(np.uint8))
