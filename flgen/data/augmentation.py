"""Augmentation of image batches, on the device where they are used."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flgen.errors import UsageError

_TRIES = 10
_AREA = (0.08, 1.0)  # share of the image
_RATIO = 4 / 3  # largest width over height, and largest height over width


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Move every image by up to `padding` pixels in each direction, zeros behind it, and mirror half of them.

    What is drawn depends on the generator and the number of images alone, so a batch is augmented alike on any device.

    Args:
        images: uint8 tensor (B, C, H, W), on any device.
        generator: CPU generator, source of the draws.
        padding: Rows and columns of zeros around each image, from which the crop of its own size is taken.

    Returns:
        uint8 tensor (B, C, H, W) on the same device; `images` is left as it is.

    Raises:
        UsageError: If `padding` is negative.

    Source: DisPFL, section 8.2.
    """
    if padding < 0:
        raise UsageError(f"the padding of an augmented batch is {padding}; it must be 0 or more")
    batch, channels, height, width = images.shape
    top_left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    mirrored = torch.randint(0, 2, (1, batch), generator=generator)
    # One transfer of pageable memory, which is staged before the call returns: the device need not be waited for.
    draws = torch.cat((top_left, mirrored)).to(images.device, non_blocking=True)
    top, left, flip = draws.unsqueeze(-1).unbind()
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip == 1, width - 1 - columns, columns)  # (B, W), in the padded image
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    # One index per pixel and not per element: on a CPU five times faster than indexing all four dimensions.
    pixels = (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).flatten(1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.unsqueeze(1).expand(-1, channels, -1)).view(images.shape)


def resized_crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a random rectangle out of every image, resize it to the image's own size, and mirror half of the results.

    A rectangle's area is drawn uniformly from 8 % to 100 % of the image's, the logarithm of its aspect ratio from that
    of 3/4 to that of 4/3, its place uniformly from all that are possible; of ten draws the first that fits is taken,
    else the largest central rectangle of an allowed ratio. Resizing is bilinear: torchvision's `RandomResizedCrop` with
    its defaults. What is drawn depends on the generator and the images' shape alone.

    Args:
        images: uint8 tensor (B, C, H, W), on any device.
        generator: CPU generator, source of the draws.

    Returns:
        uint8 tensor (B, C, H, W) on the same device; `images` is left as it is.

    Source: GPT-FL, section 4.1 (transforms).
    """
    batch, _, height, width = images.shape
    parts = rectangles(batch, height, width, generator)
    mirrored = torch.randint(0, 2, (1, batch), generator=generator)
    draws = torch.cat((parts, mirrored)).to(images.device, torch.float32, non_blocking=True)
    top, left, rows, columns, flip = draws.unsqueeze(-1).unbind()  # each (B, 1)

    def centres(start: Tensor, length: Tensor, size: int, reverse: Tensor) -> Tensor:
        """Where each pixel of the result lies in the image along one axis, in grid_sample's units, (B, size)."""
        steps = torch.arange(size, dtype=torch.float32, device=images.device)
        steps = torch.where(reverse == 1, size - 1 - steps, steps)
        inside = ((steps + 0.5) * length / size - 0.5).clamp(min=0).minimum(length - 1)  # never beyond the rectangle
        return (2 * (start + inside) + 1) / size - 1

    x = centres(left, columns, width, flip).unsqueeze(1).expand(-1, height, -1)
    y = centres(top, rows, height, torch.zeros_like(flip)).unsqueeze(2).expand(-1, -1, width)
    grid = torch.stack((x, y), dim=-1)  # (B, H, W, 2)
    with torch.autocast(images.device.type, enabled=False):
        resized = F.grid_sample(images.to(torch.float32), grid, padding_mode="border", align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def rectangles(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw rectangles inside images of one size; return int64 (4, count): top, left, rows, columns."""
    area = height * width * torch.empty(_TRIES, count).uniform_(*_AREA, generator=generator)
    logs = torch.empty(_TRIES, count).uniform_(-math.log(_RATIO), math.log(_RATIO), generator=generator)
    place = torch.rand(2, count, generator=generator)
    columns = (area * logs.exp()).sqrt().round()
    rows = (area / logs.exp()).sqrt().round()
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = fits.to(torch.int8).argmax(dim=0, keepdim=True)  # of the first that fits
    fallback_columns, fallback_rows = min(width, round(height * _RATIO)), min(height, round(width * _RATIO))
    any_fits = fits.any(dim=0)
    columns = torch.where(any_fits, columns.gather(0, first)[0], float(fallback_columns))
    rows = torch.where(any_fits, rows.gather(0, first)[0], float(fallback_rows))
    free = torch.stack((height - rows, width - columns))
    corner = torch.where(any_fits, (place * (free + 1)).floor().minimum(free), (free / 2).floor())
    return torch.cat((corner, torch.stack((rows, columns)))).to(torch.int64)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "crop_flip": crop_and_flip,
    "resized_crop_flip": resized_crop_and_flip,
}
"""What `augmentation` of the training options can name besides "none"."""
