"""From files and tensors to uint8 images of one size: decoding on threads, bilinear resizing.

All resizing is bilinear and, when it shrinks, antialiased (the filter widens with the scale): the rule of Pillow and
of torchvision's `Resize` on its images, which the published PRISM settings go through.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from flgen.data.threads import for_each_row
from flgen.errors import FlgenError

BYTE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"}
EXTENSION_FORMATS = {"png": ("PNG",), "jpg": ("JPEG",), "jpeg": ("JPEG",)}
"""Pillow's names of the formats of single sample files, by extension."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What files of images are read as, whatever they are called; another of Pillow's formats runs Ghostscript."""

Framing = Callable[[Image.Image], tuple[float, float, float, float]]
"""Where to crop an image before it is resized: (left, upper, right, lower) in pixels, parts of pixels allowed."""


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) to (N, C, image_size, image_size)."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    return F.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=True)


def central_square(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the largest square in the middle of an image."""
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    return left, upper, left + side, upper + side


def decode_files(
    paths: Sequence[Path],
    image_size: int,
    channels: int,
    framing: Framing = central_square,
    *,
    fast_jpeg: bool = True,
) -> Tensor:
    """Decode image files on one thread per core, crop and resize them.

    Args:
        paths: Files of one of FORMATS; orientation tags are honoured.
        image_size: Side of the result, pixels.
        channels: 1 (grey) or 3 (RGB).
        framing: Crop before the resizing.
        fast_jpeg: Let the JPEG decoder halve large photos while it decodes, down to no less than twice `image_size`.

    Returns:
        uint8 tensor (len(paths), channels, image_size, image_size).

    Raises:
        FlgenError: If a file is missing, damaged or not an 8-bit image.
    """
    pixels = np.empty((len(paths), image_size, image_size, channels), dtype=np.uint8)

    def decode(row: int) -> None:
        pixels[row] = _decode(paths[row], str(paths[row]), image_size, channels, framing, fast_jpeg)

    for_each_row(len(paths), decode)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def decode_image(
    content: bytes, extension: str, image_size: int, channels: int, framing: Framing = central_square
) -> Tensor:
    """Decode one image file from memory, crop and resize it.

    Args:
        content: The file's bytes.
        extension: One of EXTENSION_FORMATS, with or without its dot.
        image_size: Side of the result, pixels.
        channels: 1 (grey) or 3 (RGB).
        framing: Crop before the resizing.

    Returns:
        uint8 tensor (channels, image_size, image_size).

    Raises:
        FlgenError: If the extension is another one, or the file is damaged or not an 8-bit image.
    """
    kind = extension.lower().removeprefix(".")
    if kind not in EXTENSION_FORMATS:
        raise FlgenError(f"a .{kind} file is no image; give {', '.join('.' + name for name in EXTENSION_FORMATS)}")
    source, named = io.BytesIO(content), f"this .{kind} file"
    pixels = _decode(source, named, image_size, channels, framing, formats=EXTENSION_FORMATS[kind])
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _decode(
    source: Path | io.BytesIO,
    named: str,
    image_size: int,
    channels: int,
    framing: Framing = central_square,
    fast_jpeg: bool = False,
    formats: tuple[str, ...] = FORMATS,
) -> np.ndarray:
    """Return one file's pixels, uint8 (image_size, image_size, channels); `named` is what messages call it."""
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(source, formats=formats) as image:
            if image.mode not in BYTE_MODES:
                raise FlgenError(f"{named} has pixels of mode {image.mode}; convert it to 8 bits per channel")
            if fast_jpeg:
                image.draft(mode, (2 * image_size, 2 * image_size))
            ImageOps.exif_transpose(image, in_place=True)
            box = framing(image)
            resized = image.convert(mode).resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
            return np.asarray(resized).reshape(image_size, image_size, channels)
    except FileNotFoundError:
        raise FlgenError(f"{named} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FlgenError(f"{named} is damaged or not an image ({one_line(error)}); replace or remove it") from error


def one_line(error: BaseException) -> str:
    """Return what an error says on one line, cut at 200 characters, for a message that has to stay on one."""
    return " ".join(str(error).split())[:200] or type(error).__name__
