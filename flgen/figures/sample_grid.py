"""A grid of samples as one picture."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from flgen.experiment.records import atomic_replace

GAP = 2  # pixels of the picture
GAP_VALUE = 128


def sample_grid(images: Tensor, columns: int | None = None, minimum_side: int = 512) -> Tensor:
    """Arrange images row by row, with a grey gap between them.

    Small images are enlarged by a whole factor, the smallest that gives the picture's longer side at least
    `minimum_side` pixels. The enlargement is bicubic: the eye reads an 8x8 digit from a smooth picture, not from
    blocks.

    Args:
        images: uint8 (images, channels, height, width).
        columns: Images per row; None makes the grid about square.
        minimum_side: Pixels.

    Returns:
        uint8 (channels, grid height, grid width).

    Raises:
        ValueError: If the images are not a non-empty uint8 batch, or `columns` is below 1.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"sample_grid takes uint8 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    n, channels, height, width = images.shape
    columns = min(n, math.ceil(math.sqrt(n)) if columns is None else columns)
    if columns < 1:
        raise ValueError(f"sample_grid needs at least 1 column, got {columns}")
    rows = math.ceil(n / columns)

    def factor_for(count: int, side: int) -> int:
        return math.ceil((minimum_side - GAP * (count + 1)) / (count * side))

    factor = max(1, min(factor_for(rows, height), factor_for(columns, width)))
    height, width = height * factor, width * factor
    enlarged = images.cpu()
    if factor > 1:
        smooth = torch.nn.functional.interpolate(enlarged.float(), scale_factor=factor, mode="bicubic")
        enlarged = smooth.round_().clamp_(0, 255).to(torch.uint8)
    grid_size = (channels, GAP + rows * (height + GAP), GAP + columns * (width + GAP))
    grid = torch.full(grid_size, GAP_VALUE, dtype=torch.uint8)
    for index, image in enumerate(enlarged):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_png(grid: Tensor, path: Path) -> None:
    """Write a picture as PNG; the folder is made, and the file takes its name only when it is whole.

    Args:
        grid: uint8 (channels, height, width), one or three channels, or one more for transparency.
        path: Where to write.

    Raises:
        FlgenError: If the file cannot be written.
    """
    with atomic_replace(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(grid).save(temporary, format="PNG")
