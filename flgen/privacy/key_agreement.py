"""Keys: what two clients agree on without meeting, and messages that only one of them can read.

X25519, HKDF-SHA256 and ChaCha20-Poly1305 are pycryptodome's (gptfl.md, section 2.6).
"""

from __future__ import annotations

import secrets

from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Hash import SHA256
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
from Crypto.Protocol.KDF import HKDF
from Crypto.PublicKey.ECC import EccKey

from flgen.errors import FlgenError

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE_BYTES = 12


def new_secret() -> bytes:
    """Return 32 bytes that nobody else knows: a secret key, or a seed."""
    return secrets.token_bytes(KEY_BYTES)


def private_key(secret: bytes) -> EccKey:
    """Return the X25519 key of a secret (32 bytes); making it takes as long as an agreement, so it is made once."""
    return import_x25519_private_key(secret)


def public_key(key: EccKey) -> bytes:
    """Return the public half (32 bytes) of an X25519 key."""
    public: bytes = key.public_key().export_key(format="raw")
    return public


def derive_key(secret: bytes, purpose: str) -> bytes:
    """Return a key (32 bytes) for one purpose from a secret: HKDF-SHA256, the purpose as its context."""
    derived = HKDF(secret, KEY_BYTES, b"", SHA256, context=purpose.encode())
    assert isinstance(derived, bytes)
    return derived


def agreed_key(key: EccKey, their_public: bytes, purpose: str) -> bytes:
    """Return the key (32 bytes) for one purpose that the owners of two key pairs, and they alone, can compute.

    Args:
        key: Of one of them.
        their_public: Public half of the other's, 32 bytes.
        purpose: What the agreed key is for.

    Raises:
        FlgenError: The public key is none.
    """
    try:
        return key_agreement(
            static_priv=key,
            static_pub=import_x25519_public_key(their_public),
            kdf=lambda shared: derive_key(shared, purpose),
        )
    except ValueError as error:
        raise FlgenError(f"secure aggregation: a public key cannot be used ({error})") from error


def seal(key: bytes, number: int, message: bytes) -> bytes:
    """Return a message encrypted and authenticated, 16 bytes longer.

    Args:
        key: 32 bytes.
        number: The nonce, from 0: another one for every message that the key seals.
        message: What to seal.
    """
    sealed, tag = _cipher(key, number).encrypt_and_digest(message)
    return sealed + tag


def unseal(key: bytes, number: int, sealed: bytes) -> bytes:
    """Return the message that was sealed with this key as this number.

    Raises:
        FlgenError: It was sealed with another key or number, or changed on the way.
    """
    try:
        cipher = _cipher(key, number)
        return cipher.decrypt_and_verify(sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])
    except ValueError as error:
        raise FlgenError("secure aggregation: a share was changed on its way, or is not for its receiver") from error


def _cipher(key: bytes, number: int) -> ChaCha20_Poly1305.ChaCha20Poly1305Cipher:
    return ChaCha20_Poly1305.new(key=key, nonce=number.to_bytes(_NONCE_BYTES, "big"))
