"""Siamese augmentation of synthetic images: one transformation, drawn once for a whole batch, differentiable.

After Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, in whose numbers
DynaFed uses it (gptfl.md, section 6.9): color, crop, cutout, flip, scale or rotate, each as likely as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CROP = 0.125  # of the side, in either direction
_CUTOUT = 0.5  # side of the hole, of the image's
_SCALE = 1.2  # and as much smaller
_ROTATION = 15.0  # degrees, in either direction
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5


def siamese(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one of the transformations to all images alike.

    Args:
        images: Float (B, C, H, W), standardised, on any device.
        generator: CPU generator; it draws which transformation, and its numbers.
    """
    chosen = int(torch.randint(len(TRANSFORMATIONS), (), generator=generator))
    return list(TRANSFORMATIONS.values())[chosen](images, generator)


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, then saturation, then contrast."""
    brightness, saturation, contrast = _draw(3, generator)
    images = images + (brightness - 0.5) * _BRIGHTNESS
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * _SATURATION) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + _CONTRAST) + mean


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move the images by up to an eighth of their side, zeros behind them."""
    height, width = images.shape[2:]
    top, left = _draw(2, generator)
    room = [int(side * _CROP + 0.5) for side in (height, width)]
    row, column = (min(int(u * (2 * most + 1)), 2 * most) for u, most in zip((top, left), room, strict=True))
    padded = F.pad(images, (room[1], room[1], room[0], room[0]))
    return padded[:, :, row : row + height, column : column + width]


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Clear a square of half their side, around a point anywhere in the images."""
    height, width = images.shape[2:]
    keep = torch.ones(height, width, dtype=images.dtype, device=images.device)
    corner = []
    for u, side in zip(_draw(2, generator), (height, width), strict=True):
        hole = int(side * _CUTOUT + 0.5)
        start = min(int(u * side), side - 1) - hole // 2
        corner.append(slice(max(start, 0), max(start + hole, 0)))
    keep[corner[0], corner[1]] = 0
    return images * keep


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror the images, or do not."""
    (u,) = _draw(1, generator)
    return images.flip(3) if u < 0.5 else images


def scale(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stretch height and width, each by up to a fifth or down by as much."""
    factors = [u * (_SCALE - 1 / _SCALE) + 1 / _SCALE for u in _draw(2, generator)]
    return _warp(images, [[factors[0], 0.0, 0.0], [0.0, factors[1], 0.0]])


def rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the images by up to 15 degrees in either direction, zeros in the corners."""
    (u,) = _draw(1, generator)
    angle = math.radians((2 * u - 1) * _ROTATION)
    return _warp(images, [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])


TRANSFORMATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def _draw(count: int, generator: torch.Generator) -> list[float]:
    """Return numbers from U[0, 1)."""
    numbers: list[float] = torch.rand(count, generator=generator).tolist()
    return numbers


def _warp(images: Tensor, matrix: list[list[float]]) -> Tensor:
    """Look up every pixel where an affine map sends it, zeros outside."""
    theta = torch.tensor(matrix, dtype=images.dtype).to(images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)
