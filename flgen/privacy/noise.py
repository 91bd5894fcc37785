"""Gaussian noise for differential privacy, from streams that a secret names.

The noise of a release is named by what is released, to the bit, so that no difference of two releases is free of it.
A round that is repeated after an interruption releases the same numbers again, and nothing more, if it comes to the
same bits before the noise. It does on the same machine and device, with as many ranks and threads; anywhere else sums
end in other bits, and the round is a second release of nearly the same values, which nobody counts.

Who knows the secret can take the noise away: without a file of its own it is the run's seed, which makes runs
repeatable and the guarantee that of a simulation. NumPy's Philox is keyed with 128 bits; neither it nor the
floating-point arithmetic around it is hardened against an attacker who studies single bits (prism.md, section 6.3).
"""

from __future__ import annotations

import hashlib
import struct
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flgen.errors import UsageError

SHORTEST_SECRET = 16  # bytes


class NoiseSource:
    """Where all privacy noise of a run comes from; a file is read at the first release.

    Args:
        secret: What names the streams, or the name of the file that holds it.
        of_seed: Whether it is the run's seed.
    """

    def __init__(self, secret: bytes | str, of_seed: bool = False) -> None:
        self._given = secret
        self._begun_with: str | None = None
        self.of_seed = of_seed

    @classmethod
    def of_run(cls, seed: int, key_file: str | None = None) -> NoiseSource:
        """Return the source of a run: a secret file's, or the seed's where there is none.

        Args:
            seed: The run's seed.
            key_file: A file of at least 16 bytes, such as `head -c 32 /dev/urandom` writes.
        """
        return cls(f"seed {seed}".encode(), of_seed=True) if key_file is None else cls(key_file)

    @cached_property
    def secret(self) -> bytes:
        """What names the streams.

        Raises:
            UsageError: The file that holds it cannot be read, or is too short.
        """
        if isinstance(self._given, bytes):
            return self._given
        remedy = "make one with: head -c 32 /dev/urandom > FILE"
        try:
            secret = Path(self._given).expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f"{self._option}: cannot be read ({error.strerror}); {remedy}") from error
        if len(secret) < SHORTEST_SECRET:
            raise UsageError(f"{self._option}: has {len(secret)} bytes, {SHORTEST_SECRET} are the least; {remedy}")
        return secret

    @property
    def fingerprint(self) -> str:
        """By what a secret is known again, 16 bytes in hexadecimal; it does not say what the secret is."""
        return hashlib.blake2b(b"fingerprint", digest_size=16, key=self._key).hexdigest()

    @property
    def _key(self) -> bytes:
        return hashlib.blake2b(self.secret).digest()

    @property
    def _option(self) -> str:
        return f"--method.privacy.noise_key {'null' if isinstance(self._given, bytes) else self._given}"

    def go_on_from(self, fingerprint: str) -> None:
        """Let nobody but the secret of this fingerprint, which a run began with, name streams."""
        self._begun_with = fingerprint

    def check(self) -> None:
        """Read the secret.

        Raises:
            UsageError: It cannot be read, or is not the one that the run began with.
        """
        if self._begun_with not in (None, self.fingerprint):
            raise UsageError(
                f"{self._option}: is not the secret that the run began with, and would add other noise to what was "
                "released before: give the file that it began with, or start anew without --ckpt_path"
            )

    def gaussian(
        self, shape: tuple[int, ...], std: float, purpose: str, *, round: int = 0, client: int | None = None
    ) -> Tensor:
        """Return N(0, std^2 I) of one stream, float64 on the CPU.

        Args:
            shape: Of the noise.
            std: Standard deviation.
            purpose: What it is for.
            round: The round that it is for.
            client: Who draws it; None is the server.

        Raises:
            UsageError: The secret cannot be read, or is not the one that the run began with.
        """
        self.check()
        name = f"{purpose}/{round}/{'server' if client is None else client}"
        key = hashlib.blake2b(name.encode(), digest_size=16, key=self._key).digest()
        draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
        return torch.from_numpy(draws.standard_normal(shape)).mul_(std)

    def release(self, exact: Tensor, std: float, purpose: str, *, round: int = 0, client: int | None = None) -> Tensor:
        """Return exact + N(0, std^2 I), float64 on its device.

        Args:
            exact: What is released, of any shape; each coordinate is rounded to float64 if it is not.
            std: Standard deviation.
            purpose: What it is.
            round: The round of the release.
            client: Who releases it; None is the server.
        """
        values = exact.detach().to("cpu", torch.float64).contiguous()
        digest = hashlib.blake2b(struct.pack("<d", std), digest_size=16)
        digest.update(values.numpy().data)
        drawn = self.gaussian(tuple(values.shape), std, f"{purpose} {digest.hexdigest()}", round=round, client=client)
        return drawn.add_(values).to(exact.device)
