"""Random streams: every draw of a run comes from a generator named by (seed, purpose, round, client).

Nothing reads a global generator, so a result depends neither on which rank hosts a client, nor on the order
of clients, nor on who else takes part, nor on how often the run was stopped and resumed.

These generators are for training, not for cryptography: PyTorch's CPU generator uses 32 bits of a seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = deferred_module("numpy")
    torch = deferred_module("torch")


@dataclass(frozen=True)
class RandomStreams:
    """All random streams of one run.

    Args:
        seed: The run's seed (`seed_everything` in the configuration).
    """

    seed: int

    def seed_for(self, purpose: str, *, round: int = 0, client: int | None = None) -> int:
        """Return the 63-bit seed of one stream; `client=None` is the server's."""
        key = f"{self.seed}/{purpose}/{round}/{'server' if client is None else client}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def torch(
        self, purpose: str, *, round: int = 0, client: int | None = None, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """Return a torch generator on `device` at the start of the named stream."""
        return torch.Generator(device).manual_seed(self.seed_for(purpose, round=round, client=client))

    def numpy(self, purpose: str, *, round: int = 0, client: int | None = None) -> np.random.Generator:
        """Return a NumPy generator at the start of the named stream."""
        return np.random.default_rng(self.seed_for(purpose, round=round, client=client))
