"""The keys of one party: Ed25519 signs its records and answers, X25519 agrees on masks with every other hospital.

The certificate's key is not used: the coordinator holds the authority and could issue another certificate for a hospital.
The public halves stand in the protocol, which every hospital reads before it agrees.
"""

import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mil.errors import MilError
from mil.files import write_bytes

PRIME = 2**255 - 19
D = -121665 * pow(121666, -1, PRIME) % PRIME
"""Of both curves (RFC 8032, section 5.1)."""
HALF = 32
"""Bytes of each private and public key."""


def private_folder(path: str | Path) -> Path:
    """The folder of a party's keys, or one in it; it and what is missing above it are made for their owner only (mode 700)."""
    path = Path(path)
    for folder in [*reversed(path.parents), path]:
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


class PartyKey:
    """Both private keys of a party, made at the first call; they stay in the workspace, readable by its owner only."""

    def __init__(self, workspace: str | Path) -> None:
        path = private_folder(workspace) / "party.key"
        if not path.exists():
            write_bytes(path, secrets.token_bytes(2 * HALF), private=True)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise MilError(f"{path}: cannot be read ({error.strerror}); restore it from the backup") from error
        if len(content) != 2 * HALF:
            raise MilError(f"{path}: {len(content)} bytes, not {2 * HALF}; restore it from the backup of the workspace")
        self.signing = Ed25519PrivateKey.from_private_bytes(content[:HALF])
        self.agreement = X25519PrivateKey.from_private_bytes(content[HALF:])
        halves = (self.signing.public_key(), self.agreement.public_key())
        self.public = b"".join(half.public_bytes_raw() for half in halves).hex()
        """Ed25519 and X25519 public key, 128 hexadecimal digits: `key` of the party in the protocol."""

    def sign(self, content: bytes) -> str:
        """Signature of `content`, 128 hexadecimal digits."""
        return self.signing.sign(content).hex()

    def shared(self, other: str) -> bytes:
        """The secret that this party and the one with the public key `other` can compute, and nobody else (32 bytes)."""
        return self.agreement.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(other)[HALF:]))


def check_public(public: str) -> None:
    """Raise ValueError unless both halves of a public key are points of their curves of which a private key can be the number.

    With a point of small order, anybody can sign, and every mask is the same (RFC 7748, section 6.1).
    """
    halves = bytes.fromhex(public)
    y = int.from_bytes(halves[:HALF], "little") & ~(1 << 255)
    slope = (y * y - 1) * pow(D * y * y + 1, -1, PRIME) % PRIME  # x squared
    if y >= PRIME or pow(slope, (PRIME - 1) // 2, PRIME) != 1:
        raise ValueError("its first half is no public key of Ed25519")
    montgomery = (1 + y) * pow(1 - y, -1, PRIME) % PRIME  # the same point on the other curve
    probe = X25519PrivateKey.from_private_bytes(bytes(HALF))
    for half, name in ((montgomery.to_bytes(HALF, "little"), "first half"), (halves[HALF:], "second half")):
        try:
            probe.exchange(X25519PublicKey.from_public_bytes(half))
        except ValueError as error:
            raise ValueError(f"its {name} is a point of small order, with which there is no secret") from error


def is_signed(content: bytes, signature: object, public: str) -> bool:
    """Whether `signature` over `content` was made by the party with the key `public`."""
    return _is_signed(content, str(signature), public)


@lru_cache(maxsize=4096)  # a ledger is read again for every line that is added
def _is_signed(content: bytes, signature: str, public: str) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)[:HALF])
        key.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True
