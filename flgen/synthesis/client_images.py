"""T_client: from what a generator draws to what a client's network takes (specification of FedKTL, section 1.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flgen.data.image_data import ImageData

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow makes images grey


def to_client_images(images: Tensor, channels: int, image_size: int, antialias: bool = True) -> Tensor:
    """Resize the shorter side, bilinearly, crop the centre, and give images the client's channels.

    Args:
        images: float32 (b, ch, h, w) in [0, 1]; ch is 1 (grey) or 3 (RGB).
        channels: The client's: 1 or 3. Grey is copied, RGB becomes its luminance.
        image_size: R, the client's image side, pixels.
        antialias: Whether the filter widens with the scale where images shrink. The published code does not (defect 11
            of section 8: it depends on the version of torchvision).

    Returns:
        float32 tensor (b, channels, R, R) in [0, 1].

    Raises:
        ValueError: A number of channels is another one.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or channels not in (1, 3):
        raise ValueError(f"images {tuple(images.shape)} cannot be given {channels} channels: there are 1 and 3")
    if images.shape[1] == 3 and channels == 1:
        weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        images = (images * weights).sum(dim=1, keepdim=True)
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != image_size:
        size = (image_size * height // short, image_size * width // short)
        images = F.interpolate(images, size=size, mode="bilinear", antialias=antialias)
        height, width = size
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    images = images[..., top : top + image_size, left : left + image_size]
    return images.expand(-1, channels, -1, -1).clamp(0.0, 1.0).contiguous()


def standardize_unit(images: Tensor, data: ImageData) -> Tensor:
    """Return images as the modules of clients take theirs: `data.standardize` of pixels that need not be bytes.

    Args:
        images: float32 (b, C, H, W) in [0, 1], on any device.
        data: The clients' data set; its layout says mean and standard deviation per channel, or neither: [-1, 1].

    Returns:
        float32 tensor (b, C, H, W) on the same device.
    """
    layout = data.layout()
    if layout.mean is None or layout.std is None:
        return images * 2.0 - 1.0
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (layout.mean, layout.std))
    return (images - mean) / std
