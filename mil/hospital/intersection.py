"""Which elements two parties have in common, without showing the others: Diffie-Hellman private set intersection.

Meadows 1986 (doi 10.1109/SP.1986.10022), Huberman, Franklin and Hogg 1999 (doi 10.1145/336992.337012), here on Curve25519 (RFC
7748). Each party maps its elements to points of the curve and multiplies them by a secret number. The multiplication commutes,
a(bP) = b(aP), so what both have multiplied is equal exactly where the elements are. Without a number nobody can test a guess.
"""

import hashlib
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mil.hospital.keys import HALF, PRIME

SLOPE = 486662
"""Of the curve v^2 = u^3 + 486662 u^2 + u (RFC 7748, section 4.1)."""


def point(label: str, value: str) -> bytes:
    """A point of the curve for `value`, as its u-coordinate (32 bytes, little end first); `label` separates sets of elements.

    The hash is repeated with a counter until it is on the curve: half of all numbers are on its twist instead, and multiplying
    keeps them there, so that everybody could exclude half of all guesses.
    """
    content, counter = f"mil intersection|{label}|{value}", 0
    while True:
        u = int.from_bytes(hashlib.sha512(f"{counter}|{content}".encode()).digest(), "little") % PRIME
        if _on_curve(u):
            return u.to_bytes(HALF, "little")
        counter += 1


def check_point(content: bytes) -> None:
    """Raise ValueError unless these bytes are what `point` or `multiplied` makes."""
    u = int.from_bytes(content, "little")
    if len(content) != HALF or u >= PRIME or not _on_curve(u):
        raise ValueError(f"{content.hex()[:16]}... is no point of the curve")


def multiplied(points: Iterable[bytes], secret: bytes) -> list[bytes]:
    """Every point times the secret number (32 bytes), in the same order; ValueError for a point of small order, with 0 as result."""
    key = X25519PrivateKey.from_private_bytes(secret)
    return [key.exchange(X25519PublicKey.from_public_bytes(coordinate)) for coordinate in points]


def _on_curve(u: int) -> bool:
    """Whether some v exists for this u: Euler's criterion."""
    return pow((u * u + SLOPE * u + 1) * u % PRIME, (PRIME - 1) // 2, PRIME) == 1
