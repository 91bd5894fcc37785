"""Feature moments of clients' images on the disk, under everything that they depend on.

They are statistics of private images, in the clear: a cache is kept only where somebody asked for one, and a private
run refuses it, whatever its mechanism.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flgen.errors import FlgenError
from flgen.experiment.records import atomic_replace

log = logging.getLogger("flgen")

RECIPE = 1
"""Raise it with every change of how moments are computed that changes their bits."""


class StatisticsCache:
    """A folder of moments, one safetensors file each.

    Args:
        folder: Made when something is first put there.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).expanduser()

    def read(self, key: Mapping[str, Any]) -> Tensor | None:
        """Return the moments under a key, on the CPU; None if there are none, or their file is damaged.

        Args:
            key: All that they depend on, as values that JSON has.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), "pt") as file:
                moments: Tensor = file.get_tensor("moments")
                expected = (file.metadata() or {}).get("blake2b")
            if digest_of([moments]) != expected:
                raise ValueError("wrong checksum")
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            log.warning("the statistics are computed again: the file %s is damaged (%s)", path, reason)
            return None
        return moments

    def write(self, key: Mapping[str, Any], moments: Tensor) -> None:
        """Keep moments under a key; a folder that cannot be written is reported and otherwise no harm."""
        path = self._path(key)
        kept = moments.detach().cpu().contiguous()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_replace(path) as temporary:
                save_file({"moments": kept}, str(temporary), metadata={"blake2b": digest_of([kept])})
        except (FlgenError, OSError, SafetensorError) as error:
            log.warning("the statistics are not kept in --model.loss.cache_dir %s: %s", self._folder, error)

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps({"recipe": RECIPE, **key}, sort_keys=True)
        return self._folder / f"moments-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return a digest of tensors' types, shapes and bytes, in their order, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_images(batches: Iterable[Tensor], *, ordered: bool) -> str:
    """Return a digest of all images.

    Args:
        batches: Images uint8 (B, C, H, W).
        ordered: Whether it matters which image is in which batch, at which place.
    """
    if ordered:
        return digest_of(batches)
    images = sorted(digest_of([image]) for images in batches for image in images.cpu())
    return hashlib.blake2b("".join(images).encode(), digest_size=16).hexdigest()


def arithmetic_of(device: torch.device) -> dict[str, Any]:
    """Return what decides how the same features are rounded on a device: versions, kernels, precision."""
    on_cpu = device.type == "cpu"
    return {
        "torch": torch.__version__,
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads() if on_cpu else None,
        "autocast": str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None,
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }
