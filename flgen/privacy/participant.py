"""A client's side of secure aggregation: keys, shares, masks, and what it tells the server at the end.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017; gptfl.md, section
2.6, whose symbols are used here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from Crypto.PublicKey.ECC import EccKey

from flgen.errors import FlgenError
from flgen.privacy import shamir
from flgen.privacy.key_agreement import (
    KEY_BYTES,
    TAG_BYTES,
    agreed_key,
    derive_key,
    new_secret,
    private_key,
    public_key,
    seal,
    unseal,
)
from flgen.privacy.mask_stream import MaskStream
from flgen.privacy.shamir import SHARE_BYTES
from flgen.wire import residues
from flgen.wire.residues import Residues

KEYS_BYTES = 2 * KEY_BYTES
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES


class Participant:
    """One client u in one run of the protocol; its methods are called in the order in which they stand here.

    Args:
        client: Its id u.
        neighbourhood: Ids of its neighbours and itself, ascending.
        threshold: How many of the neighbourhood rebuild its secrets, t.
        min_participants: Fewest clients that the sum may be of.
        modulus: R.
    """

    def __init__(
        self, client: int, neighbourhood: tuple[int, ...], threshold: int, min_participants: int, modulus: int
    ) -> None:
        self.client = client
        self.neighbourhood = neighbourhood
        self.others = tuple(v for v in neighbourhood if v != client)
        self.threshold = threshold
        self.min_participants = min_participants
        self.modulus = modulus
        self._encryption_key = private_key(new_secret())  # c_u
        self._masking_secret = new_secret()
        self._masking_key = private_key(self._masking_secret)  # s_u
        self._seed = new_secret()  # b_u
        self._masked = False
        self._given: dict[int, str] = {}

    def advertise(self) -> bytes:
        """Round 0: return the public keys c_u and s_u, 64 bytes."""
        return public_key(self._encryption_key) + public_key(self._masking_key)

    def share(self, run: str, keys: Mapping[int, bytes]) -> dict[int, bytes]:
        """Round 1: return the shares of b_u and s_u, each sealed for its receiver, by receiver.

        Args:
            run: Names this run of the protocol; part of every derived key.
            keys: What each neighbour advertised, by id.
        """
        self._run = run
        self._keys = keys
        points = {v: z for z, v in enumerate(self.neighbourhood, start=1)}
        b_u, s_u = (
            shamir.split(int.from_bytes(secret, "big"), self.threshold, points.values())
            for secret in (self._seed, self._masking_secret)
        )
        shares = {v: _share_bytes(b_u[z]) + _share_bytes(s_u[z]) for v, z in points.items()}
        self._own_share = shares.pop(self.client)
        # One key for both directions: each seals one message with it, whose nonce is the sender's id.
        self._sealing_keys = {v: self._agree_on_sealing(v) for v in self.others}
        return {v: seal(self._sealing_keys[v], self.client, both) for v, both in shares.items()}

    def receive(self, sealed: Mapping[int, bytes]) -> None:
        """Round 1, second half: keep what the neighbours sealed for this client, by sender."""
        self._sealed = sealed

    def mask(self, x_u: np.ndarray) -> Residues:
        """Round 2: y_u = x_u + PRG(b_u) + sum_v sigma_uv PRG(s_uv) mod R, sigma_uv = +1 iff u > v.

        Args:
            x_u: Residues mod R (d,); not changed.

        Raises:
            FlgenError: This client was masked before: the difference of two vectors under one mask is theirs.
        """
        if self._masked:
            raise FlgenError(f"secure aggregation: client {self.client} has sent its masked upload already")
        self._masked = True
        y_u = residues.as_residues(x_u, self.modulus)
        MaskStream(self_mask_key(self._seed, self._run, self.client), self.modulus).add_to(y_u, +1)
        for v in self.others:
            s_uv = pair_mask_key(self._masking_key, self._keys[v][KEY_BYTES:], self._run, self.client, v)
            MaskStream(s_uv, self.modulus).add_to(y_u, pair_sign(self.client, v))
        return y_u

    def answer(self, arrived: Collection[int]) -> bytes:
        """Round 4: return, for each of the neighbourhood, its share of b_v if v arrived and else that of s_v.

        Args:
            arrived: Ids of all clients whose masked vector is in the sum, U3, as the server says.

        Raises:
            FlgenError: The server asks for what would open a single upload.
        """
        here = [v for v in self.neighbourhood if v in arrived]
        if self.client not in arrived or len(here) < self.threshold or len(arrived) < self.min_participants:
            raise FlgenError(
                f"secure aggregation: client {self.client} does not help to open a sum of {len(arrived)} clients, "
                f"{len(here)} of them from its neighbourhood: {self.threshold} and itself are needed"
            )
        kinds = {v: "b" if v in arrived else "s" for v in self.neighbourhood}
        for v, kind in kinds.items():
            if self._given.setdefault(v, kind) != kind:
                raise FlgenError(
                    f"secure aggregation: client {self.client} was asked for both shares of client {v}, which together "
                    "open its upload"
                )
        shares = {v: self._share_of(v) for v in self.neighbourhood}
        return b"".join(both[:SHARE_BYTES] if kinds[v] == "b" else both[SHARE_BYTES:] for v, both in shares.items())

    def _share_of(self, v: int) -> bytes:
        return self._own_share if v == self.client else unseal(self._sealing_keys[v], v, self._sealed[v])

    def _agree_on_sealing(self, v: int) -> bytes:
        purpose = f"{self._run}/shares of {_pair(self.client, v)}"
        return agreed_key(self._encryption_key, self._keys[v][:KEY_BYTES], purpose)


def self_mask_key(seed: bytes, run: str, u: int) -> bytes:
    """Return the key of the mask that client u adds by itself, from b_u."""
    return derive_key(seed, f"{run}/self mask of {u}")


def pair_mask_key(key: EccKey, their_public: bytes, run: str, u: int, v: int) -> bytes:
    """Return the key of the mask that clients u and v share, from the key of one and the other's public key."""
    return agreed_key(key, their_public, f"{run}/pair mask of {_pair(u, v)}")


def pair_sign(u: int, v: int) -> int:
    """sigma_uv: the sign with which client u adds the mask it has with v."""
    return 1 if u > v else -1


def _pair(u: int, v: int) -> str:
    return f"{min(u, v)} and {max(u, v)}"


def _share_bytes(share: int) -> bytes:
    return share.to_bytes(SHARE_BYTES, "big")
