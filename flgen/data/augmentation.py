"""Augmentation of image batches, on the device where they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flgen.errors import UsageError


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
