"""Sums over hospitals that show no hospital's part (Bonawitz et al. 2017, doi 10.1145/3133956.3133982, without recovery).

Each pair of hospitals derives the same numbers from their keys and the question; one adds them, the other subtracts them, and
in the sum of all they cancel. Arithmetic is in integers modulo 2^64 (or 2^32), so it is exact: no order of sites changes a bit. Where a
site is lost, its masks do not cancel, and the round must be asked again of those who are there.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from mil.hospital.blobs import Lazy, Made, part_of, row_of
from mil.hospital.keys import PartyKey
from mil.hospital.payload import PayloadError

LIMBS = 8
"""Integers of 32 bits in which an exact number travels; the last one holds the sign and all higher bits."""
LIMB = 32
SHIFT = 96
"""An exact number is a multiple of 2^-96, below 2^150 in size."""
AT_ONCE = 2**20
"""Numbers that are masked at once."""
CLEAR = ("num_bags", "num_steps")
"""Tensors of an answer that are not masked: training patients of each model, and steps."""


def masked(tensors: Mapping[str, Tensor], key: PartyKey, site: str, keys: Mapping[str, str], question: str) -> Lazy:
    """`site`'s int64 and int32 tensors with the masks that it shares with every other site of `keys` (public keys by site) added, row by row.

    `question` names it: the same masks for the same question, others for any other.
    """
    others = sorted(set(keys) - {site})
    secrets = {other: (key.shared(keys[other]), "|".join((*sorted((site, other)), question))) for other in others}

    def row(name: str, number: int) -> Tensor:
        value = row_of(tensors, name, number).to(parts[name].dtype).contiguous().clone()
        numbers = _unsigned(value).reshape(-1)
        streams = {other: _stream(secret, f"{pair}|{name}|{number}") for other, (secret, pair) in secrets.items()}
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            for other in others:
                shared = np.frombuffer(streams[other].update(bytes(part.nbytes)), part.dtype)
                if site < other:
                    part += shared
                else:
                    part -= shared
        return value

    parts = {name: part_of(tensors, name) for name in tensors}
    hidden = {name: Made(tuple(part.shape), part.dtype, partial(row, name)) for name, part in parts.items()}
    return Lazy(hidden | {name: part for name, part in parts.items() if name in CLEAR})


def summed(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of int64 tensors modulo 2^64, or of int32 tensors modulo 2^32, which are held one at a time."""
    total: np.ndarray | None = None
    for value in tensors:
        numbers = _unsigned(value.contiguous())
        if total is None:
            total = numbers.copy()
        else:
            total += numbers
    assert total is not None
    return torch.from_numpy(total.view(f"i{total.itemsize}"))


def _unsigned(value: Tensor) -> np.ndarray:
    return value.numpy().view(f"u{value.itemsize}")


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
        Fraction(sum(int(limb) << (LIMB * power) for power, limb in enumerate(row)), 2**SHIFT) for row in total.tolist()
    ]


def _stream(secret: bytes, name: str) -> CipherContext:
    """The ChaCha20 stream under a key derived from the pair's secret and the question's name: of zeros it makes the masks."""
    derived = HKDF(SHA256(), 32, None, name.encode()).derive(secret)
    return Cipher(algorithms.ChaCha20(derived, bytes(16)), mode=None).encryptor()
