"""Sums over hospitals that show no hospital's part (Bonawitz et al. 2017, doi 10.1145/3133956.3133982, without recovery).

Each pair of hospitals derives the same numbers from their keys and the question; one adds them, the other subtracts them, and
in the sum of all they cancel. Arithmetic is in integers modulo 2^64, so it is exact: no order of sites changes a bit. Where a
site is lost, its masks do not cancel, and the round must be asked again of those who are there.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from mil.hospital.keys import PartyKey
from mil.hospital.payload import PayloadError

LIMBS = 8
"""Integers of 32 bits in which an exact number travels; the last one holds the sign and all higher bits."""
LIMB = 32
SHIFT = 96
"""An exact number is a multiple of 2^-96, below 2^150 in size."""
CLEAR = ("num_bags", "num_steps")
"""Tensors of an answer that are not masked: training patients of each model, and steps."""


def masked(
    tensors: Mapping[str, Tensor], key: PartyKey, site: str, keys: Mapping[str, str], place: str
) -> dict[str, Tensor]:
    """`site`'s int64 tensors with the masks that it shares with every other site of `keys` (public keys by site) added.

    `place` names the question: the same masks for the same question, others for any other.
    """
    hidden = {name: value for name, value in sorted(tensors.items()) if name not in CLEAR}
    sizes = {name: value.numel() for name, value in hidden.items()}
    total = np.concatenate([value.numpy().ravel() for value in hidden.values()] or [np.zeros(0, np.int64)])
    total = total.astype(np.int64).view(np.uint64)
    for other in sorted(set(keys) - {site}):
        shared = _stream(key.shared(keys[other]), "|".join((*sorted((site, other)), place)), len(total))
        total = total + shared if site < other else total - shared
    found, start = dict(tensors), 0
    for name, size in sizes.items():
        part = total[start : start + size].view(np.int64).copy()
        found[name] = torch.from_numpy(part).view(hidden[name].shape)
        start += size
    return found


def summed(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of int64 tensors modulo 2^64."""
    return torch.from_numpy(
        np.sum([value.numpy().view(np.uint64) for value in tensors], axis=0, dtype=np.uint64).view(np.int64)
    )


def exact(numbers: Sequence[Fraction]) -> Tensor:
    """Numbers -> (numbers, LIMBS) int64, to be masked and summed like any other; rounded to a multiple of 2^-SHIFT."""
    rows = np.empty((len(numbers), LIMBS), np.int64)
    for row, number in zip(rows, numbers, strict=True):
        whole = round(number * 2**SHIFT)
        if abs(whole) >= 2 ** (SHIFT + 150):
            raise PayloadError(f"a sum of {float(number):.3g} is too large to be masked; refused")
        for limb in range(LIMBS - 1):
            row[limb] = (whole >> (LIMB * limb)) & (2**LIMB - 1)
        row[-1] = whole >> (LIMB * (LIMBS - 1))
    return torch.from_numpy(rows)


def numbers_of(total: Tensor) -> list[Fraction]:
    """Sums of `exact` tensors (numbers, LIMBS) -> the numbers."""
    return [
        Fraction(sum(int(limb) << (LIMB * place) for place, limb in enumerate(row)), 2**SHIFT) for row in total.tolist()
    ]


def _stream(secret: bytes, name: str, count: int) -> np.ndarray:
    """`count` numbers (uint64) of the ChaCha20 stream under a key derived from the pair's secret and the question's name."""
    derived = HKDF(SHA256(), 32, None, name.encode()).derive(secret)
    cipher = Cipher(algorithms.ChaCha20(derived, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), np.uint64)
