"""Two clients find one key, other pairs and purposes find others, and a sealed message is read by its receiver only."""

from __future__ import annotations

import pytest

from flgen.errors import FlgenError
from flgen.privacy.key_agreement import (
    TAG_BYTES,
    agreed_key,
    derive_key,
    new_secret,
    private_key,
    public_key,
    seal,
    unseal,
)


def test_keys_are_those_of_rfc_7748() -> None:
    bob = private_key(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert agreed_key(bob, alice_public, "test") == derive_key(shared, "test")


def test_a_pair_finds_one_key_per_purpose_and_nobody_else_finds_it() -> None:
    secret = new_secret()
    u, v, w = private_key(secret), private_key(new_secret()), private_key(new_secret())
    key = agreed_key(u, public_key(v), "mask 1")
    assert agreed_key(v, public_key(u), "mask 1") == key
    others = [
        agreed_key(w, public_key(v), "mask 1"),
        agreed_key(u, public_key(v), "mask 2"),
        derive_key(secret, "mask 1"),
    ]
    assert len({key, *others}) == 4


def test_a_public_key_that_is_none_is_one_line() -> None:
    for useless in (b"short", bytes(32)):  # of the second, everybody knows the agreed secret: zero
        with pytest.raises(FlgenError, match="a public key cannot be used"):
            agreed_key(private_key(new_secret()), useless, "mask")


def test_a_sealed_message_is_read_with_its_key_and_number_and_with_no_other() -> None:
    key = new_secret()
    sealed = seal(key, 5, b"share of b_u")
    assert len(sealed) == len(b"share of b_u") + TAG_BYTES
    assert b"share" not in sealed
    assert unseal(key, 5, sealed) == b"share of b_u"
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for tried in ((new_secret(), 5, sealed), (key, 6, sealed), (key, 5, changed), (key, 5, sealed[:5])):
        with pytest.raises(FlgenError, match="was changed on its way, or is not for its receiver"):
            unseal(*tried)


def test_messages_under_one_key_have_streams_of_their_own() -> None:
    key, message = new_secret(), bytes(132)
    streams = [seal(key, number, message) for number in (0, 1, 2**63)]
    assert len({stream[at : at + 16] for stream in streams for at in range(0, 132, 16)}) == 3 * 9
