"""Keys of one client in one session, all from one secret: X25519, HKDF-SHA256 and ChaCha20-Poly1305."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

#: Bytes of a client's secret, of a public key, of what is shared among neighbours, and of a nonce.
SECRET, PUBLIC, SEED, _NONCE = 32, 32, 16, 12
#: Bytes of two sealed shares: nonce, shares, authentication tag.
SEALED = _NONCE + 2 * SEED + 16


def fresh() -> bytes:
    """A new secret, from the operating system."""
    return secrets.token_bytes(SECRET)


def derived(secret: bytes, *purpose: str | int, size: int = 32) -> bytes:
    """``size`` bytes that belong to a purpose, by HKDF-SHA256."""
    info = "/".join(("fcit secagg", *map(str, purpose))).encode()
    return HKDF(SHA256(), size, salt=None, info=info).derive(secret)


def masking_key(seed: bytes) -> X25519PrivateKey:
    """The private key of pairwise masks.

    It is made from a seed of 16 bytes, which is what neighbours get shares of: X25519 has no more than about 128 bits
    of security either, and a secret of that length is what Shamir's scheme over GF(2^128) takes in one piece.
    """
    return X25519PrivateKey.from_private_bytes(derived(seed, "masking key"))


def public(key: X25519PrivateKey) -> bytes:
    """The public key to a private one."""
    return key.public_key().public_bytes_raw()


def usable(key: bytes) -> bool:
    """Whether keys can be agreed on with a public key: not with one by which everyone would know the result."""
    try:
        agreed(X25519PrivateKey.generate(), key, "trial")
    except ValueError:
        return False
    return True


def agreed(key: X25519PrivateKey, other: bytes, *purpose: str | int) -> bytes:
    """32 bytes that only the owners of the two keys can compute.

    Raises:
        ValueError: the other key is none, or one of those with which everyone would know the result.
    """
    return derived(key.exchange(X25519PublicKey.from_public_bytes(other)), *purpose)


def pairwise(key: X25519PrivateKey, other: bytes, session: str, pair: tuple[int, int]) -> bytes:
    """The seed of the mask that two clients have in common; raises as :func:`agreed`."""
    return agreed(key, other, "pairwise mask", session, *sorted(pair))


@dataclass(frozen=True)
class Keys:
    """What one client has in one session.

    Attributes:
        secret: known to this client only; all else follows from it.
    """

    secret: bytes
    session: str
    client: int

    @cached_property
    def sealing(self) -> X25519PrivateKey:
        """Private key by which shares for this client are opened."""
        return X25519PrivateKey.from_private_bytes(derived(self.secret, "sealing key"))

    @cached_property
    def masking_seed(self) -> bytes:
        """Seed of the private key of pairwise masks: shared, and revealed if this client drops out."""
        return derived(self.secret, "masking seed", size=SEED)

    @cached_property
    def masking(self) -> X25519PrivateKey:
        """Private key of pairwise masks."""
        return masking_key(self.masking_seed)

    @cached_property
    def own_seed(self) -> bytes:
        """Seed of this client's own mask: shared, and revealed if its masked update has arrived."""
        return derived(self.secret, "own mask", size=SEED)

    def seal(self, plain: bytes, receiver: int, key: bytes, digest: bytes) -> bytes:
        """Encrypt shares to the owner of a public key; only for this direction, session and roster.

        Raises:
            ValueError: no public key that can be used.
        """
        sealing = agreed(self.sealing, key, "sealing", self.session, self.client, receiver)
        nonce = os.urandom(_NONCE)
        return nonce + ChaCha20Poly1305(sealing).encrypt(nonce, plain, digest)

    def open(self, sealed: bytes, sender: int, key: bytes, digest: bytes) -> bytes | None:
        """The shares that a client has sealed for this one; None if they were not sealed so, or were changed."""
        opening = agreed(self.sealing, key, "sealing", self.session, sender, self.client)
        try:
            return ChaCha20Poly1305(opening).decrypt(sealed[:_NONCE], sealed[_NONCE:], digest)
        except (InvalidTag, ValueError):  # the second for a nonce that is cut off
            return None


def commitment(own_seed: bytes, session: str, client: int) -> bytes:
    """What binds a client to the seed of its own mask: 128 random bits cannot be guessed from it."""
    return derived(own_seed, "commitment", session, client)
