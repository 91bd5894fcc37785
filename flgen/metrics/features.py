"""Features of many images, shared out over ranks in a way that cannot change a bit of the result.

The images are cut into the same batches whatever the number of ranks; rank r of n takes batches r, r + n, ...
The caller gathers what the ranks return, and `interleave` restores the order of the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flgen.errors import UsageError


def extract_features(
    extractor: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | str,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """Return the features of one rank's batches, (images of the rank, F) float32 on `device`.

    Args:
        extractor: Module from `load_extractor`; it is moved to `device`.
        images: All images, (N, C, H, W) uint8, on any device; the same on every rank.
        batch_size: Images per batch. It must be the same on every rank.
        device: Where the extractor runs.
        shard: (rank, number of ranks). A rank without a batch returns (0, F).

    Raises:
        UsageError: There are no images.
    """
    index, count = shard
    if not 0 <= index < count or batch_size < 1:
        raise ValueError(f"shard {shard} with batches of {batch_size}")
    if len(images) == 0:
        raise UsageError("there are no images to take features of: raise --evaluation.images")
    extractor = extractor.to(device)
    own = images.split(batch_size)[index::count]
    if not own:
        return extractor(images[:1].to(device))[:0]  # only the extractor knows F
    return torch.cat([extractor(batch.to(device)) for batch in own])


def interleave(parts: Sequence[Tensor], total: int, batch_size: int) -> Tensor:
    """Return the features of all images in the order of the images, (total, F).

    Args:
        parts: What `extract_features` returned on each rank, in the order of the ranks.
        total: Number of images, N.
        batch_size: The batch size that the features were extracted with.
    """
    batches = [part.split(batch_size) for part in parts]
    count = -(-total // batch_size)
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    expected = [sum(sizes[rank :: len(parts)]) for rank in range(len(parts))]
    if [len(part) for part in parts] != expected:
        raise ValueError(f"parts of {[len(part) for part in parts]} images where {expected} were expected")
    return torch.cat([batches[batch % len(parts)][batch // len(parts)] for batch in range(count)])
