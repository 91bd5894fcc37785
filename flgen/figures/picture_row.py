"""One picture per class side by side, pixel by pixel: written by a run, read by a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flgen.errors import FlgenError
from flgen.figures.sample_grid import GAP_VALUE, sample_grid


def picture_row(pictures: Mapping[int, Tensor], classes: int) -> Tensor:
    """Return pictures side by side in the order of their classes, with an alpha channel that says which there are.

    Args:
        pictures: uint8 (channels, height, width) by class, at least one; one or three channels.
        classes: Number of classes.

    Returns:
        uint8 (channels + 1, height, classes * width): a class without a picture is transparent.
    """
    channels, height, width = next(iter(pictures.values())).shape
    row = torch.zeros(channels + 1, height, classes * width, dtype=torch.uint8)
    for label, picture in pictures.items():
        columns = slice(label * width, (label + 1) * width)
        row[:-1, :, columns] = picture.cpu()
        row[-1, :, columns] = 255
    return row


def picture_grid(pictures: Mapping[int, Tensor], classes: int) -> Tensor:
    """Return pictures as a grid for the eye, uint8 (channels, height, width), grey where a class has none.

    Args:
        pictures: As for `picture_row`.
        classes: Number of classes.
    """
    missing = torch.full_like(next(iter(pictures.values())), GAP_VALUE)
    return sample_grid(torch.stack([pictures.get(label, missing) for label in range(classes)]))


def read_picture_row(path: Path, classes: int) -> dict[int, np.ndarray]:
    """Return the pictures of a row by class, uint8 (height, width, 3).

    Args:
        path: A PNG of `picture_row`.
        classes: Number of classes.

    Raises:
        FlgenError: The file is damaged, or it is no row of that many classes.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, row = image.mode, np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise FlgenError(f"{path} cannot be read ({reason}): remove it, or choose other --rounds") from error
    width, rest = divmod(row.shape[1], classes)
    if rest or not width or mode not in ("LA", "RGBA"):
        raise FlgenError(f"{path} is no row of {classes} class pictures: remove it, or choose other --rounds")
    tiles = np.split(row, classes, axis=1)
    return {label: tile[..., :3] for label, tile in enumerate(tiles) if tile[..., 3].all()}
