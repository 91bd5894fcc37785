"""Keys: what two clients agree on without meeting, and messages that only one of them can read.

X25519, HKDF-SHA256 and ChaCha20-Poly1305 are pycryptodome's (gptfl.md, section 2.6).
"""

from __future__ import annotations

import secrets

from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Hash import SHA256
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key, key_agreement
from Crypto.Protocol.KDF import HKDF

from flgen.errors import FlgenError

KEY_BYTES = 32
TAG_BYTES = 16
_ONCE = bytes(12)  # a nonce; each key seals one message


def new_secret() -> bytes:
    """Return 32 bytes that nobody else knows: a secret key, or a seed."""
    return secrets.token_bytes(KEY_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a secret key (32 bytes)."""
    key: bytes = import_x25519_private_key(secret).public_key().export_key(format="raw")
    return key


def derive_key(secret: bytes, purpose: str) -> bytes:
    """Return a key (32 bytes) for one purpose from a secret: HKDF-SHA256, the purpose as its context."""
    derived = HKDF(secret, KEY_BYTES, b"", SHA256, context=purpose.encode())
    assert isinstance(derived, bytes)
    return derived


def agreed_key(secret: bytes, their_public: bytes, purpose: str) -> bytes:
    """Return the key (32 bytes) for one purpose that the owners of two key pairs, and they alone, can compute.

    Raises:
        FlgenError: The public key is none.
    """
    try:
        return key_agreement(
            static_priv=import_x25519_private_key(secret),
            static_pub=import_x25519_public_key(their_public),
            kdf=lambda shared: derive_key(shared, purpose),
        )
    except ValueError as error:
        raise FlgenError(f"secure aggregation: a public key cannot be used ({error})") from error


def seal(key: bytes, message: bytes) -> bytes:
    """Return a message encrypted and authenticated, 16 bytes longer; a key must seal one message only."""
    sealed, tag = ChaCha20_Poly1305.new(key=key, nonce=_ONCE).encrypt_and_digest(message)
    return sealed + tag


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return a sealed message.

    Raises:
        FlgenError: It was sealed with another key, or changed on the way.
    """
    try:
        cipher = ChaCha20_Poly1305.new(key=key, nonce=_ONCE)
        return cipher.decrypt_and_verify(sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])
    except ValueError as error:
        raise FlgenError("secure aggregation: a share was changed on its way, or is not for its receiver") from error
