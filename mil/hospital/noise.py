"""Random numbers that nobody outside the site can predict: a keyed cipher stream, the same again for the same names.

A round that is asked again, after a crash, must get the very same noise: fresh noise on the same gradients would tell more
of them. So the stream is derived from the site's secret and the round's names, and from nothing else.
"""

import hashlib
import hmac

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.special import ndtri


class SecretStream:
    """AES-256 in counter mode under a key of this secret and these names."""

    def __init__(self, secret: bytes, *names: object) -> None:
        text = "\x1f".join(str(name) for name in names)
        key = hmac.new(secret, text.encode(), hashlib.sha256).digest()
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """`count` numbers in the open interval (0, 1), float64."""
        bits = np.frombuffer(self._cipher.update(bytes(8 * count)), np.uint64) >> np.uint64(11)
        return (bits.astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """`count` standard normal numbers, float64, by the inverse of the distribution function."""
        return ndtri(self.uniform(count))
