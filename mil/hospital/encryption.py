"""Encrypted aggregation: the server adds the sites' updates without being able to read one (CKKS, by TenSEAL).

All sites hold one secret key and the server none; so it protects against a server that is curious and keeps to the
protocol, not against one that has a site's key. The sites open each round's sum once and tell the server, as the next
global model will tell everybody anyway. CKKS is approximate, and the exact error of a decryption would give the key away
(Li and Micciancio 2021, doi 10.1007/978-3-030-77870-5_23): what is told carries noise of its own, far above that error
and below what training notices.

Where every site takes part in every round, an update also carries masks that cancel in the sum of all (Bonawitz et al. 2017,
doi 10.1145/3133956.3133982, their first protocol): opened alone, or without one of the sites, it is noise.
"""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mil.errors import MilError
from mil.files import write_bytes, write_text
from mil.hospital.noise import SecretStream

DEGREE, MODULI, SCALE = 8192, (60, 60), 2.0**45
"""128-bit security allows 218 bits of moduli at this degree (HomomorphicEncryption.org 2018); additions need but two."""
SLOTS = DEGREE // 2
LARGEST = 2.0**12
"""A sum must stay well below modulus / scale = 2^15."""
MASK = 2.0**8
"""Standard deviation of the mask that a pair of sites shares; a model's weights move by far less than 1 a round."""
COVER = 5e-8
"""Standard deviation of the noise over what is opened; CKKS's own error is 4e-10 here."""


def tenseal() -> Any:
    """The optional package, or how to get it."""
    try:
        return importlib.import_module("tenseal")
    except ImportError as error:
        raise MilError(
            "encryption ckks needs the package tenseal at all parties; `pip install 'tenseal>=0.3.15'`"
        ) from error


def make_keys(secret: Path, public: Path) -> None:
    """A new key pair: `secret` for all sites and nobody else, `public` for the server."""
    package = tenseal()
    if secret.exists():
        raise MilError(f"{secret} is there already; a federation has one key")
    kind = package.SCHEME_TYPE.CKKS
    context = package.context(kind, poly_modulus_degree=DEGREE, coeff_mod_bit_sizes=list(MODULI))
    context.global_scale = SCALE
    parts = {"save_public_key": True, "save_galois_keys": False, "save_relin_keys": False}
    write_text(public, context.serialize(save_secret_key=False, **parts).hex())
    write_bytes(
        secret, context.serialize(save_secret_key=True, **parts).hex().encode(), private=True
    )  # completes the pair


class Adder:
    """The server's side: adds what it cannot read."""

    def __init__(self, path: str | Path) -> None:
        self.package, self.context = _context(path)
        if self.context.is_private():
            raise MilError(f"{path} holds the secret key; the server gets the public one only. Make new keys")

    def add(self, sealed: Sequence[Tensor]) -> Tensor:
        """Sealed vectors of the sites, in the order of their names -> their sealed sum."""
        vectors = [list(self._opened(one)) for one in sealed]
        if len({len(own) for own in vectors}) != 1:
            raise MilError("encrypted updates of the sites differ in length; they are not of the same model")
        return _packed([_sum(parts).serialize() for parts in zip(*vectors, strict=True)])

    def _opened(self, sealed: Tensor) -> Iterator[Any]:
        for part in _unpacked(sealed):
            yield self.package.ckks_vector_from(self.context, part)


class Cipher:
    """A site's side: seals its own update, opens sums."""

    def __init__(self, path: str | Path) -> None:
        self.package, self.context = _context(path)
        if not self.context.is_private():
            raise MilError(f"{path} is the public key; a site needs the secret one, from the site that made it")
        self.own = hashlib.sha256(Path(path).read_bytes()).digest()

    def mask(self, site: str, sites: Sequence[str], asked: str, count: int) -> np.ndarray:
        """`site`'s numbers of masks that cancel in the sum over all `sites` that were asked the same question."""
        total = np.zeros(count)
        for other in sorted(set(sites) - {site}):
            pair = sorted((site, other))
            shared = MASK * SecretStream(self.own, "mask", *pair, asked).normal(count)
            total += shared if site == pair[0] else -shared
        return total

    def seal(self, tensors: Sequence[Tensor], mask: np.ndarray | None = None) -> Tensor:
        """Numbers, with the mask (numbers,) added -> bytes (uint8)."""
        values = torch.cat([one.double().flatten() for one in tensors]).numpy()
        if not np.abs(values).max() <= LARGEST:
            raise MilError(
                f"an update of {np.abs(values).max():.3g} is too large to be encrypted; lower the learning rate"
            )
        values = values if mask is None else values + mask
        chunks = np.split(values, range(SLOTS, len(values), SLOTS))
        return _packed([self.package.ckks_vector(self.context, chunk.tolist()).serialize() for chunk in chunks])

    def open(self, sealed: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Bytes -> numbers of these shapes, float64, covered with noise that only the key's holders could repeat."""
        parts = [self.package.ckks_vector_from(self.context, part).decrypt() for part in _unpacked(sealed)]
        values = np.concatenate([np.asarray(part) for part in parts])
        sizes = [int(np.prod(shape)) for shape in shapes]
        if len(values) != sum(sizes):
            raise MilError(f"an encrypted sum of {len(values)} numbers where {sum(sizes)} belong; refused")
        seen = hashlib.sha256(sealed.numpy().tobytes()).hexdigest()
        values += COVER * SecretStream(self.own, "cover", seen).normal(len(values))
        pieces = np.split(values, np.cumsum(sizes)[:-1])
        return [torch.from_numpy(piece.copy()).view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _context(path: str | Path) -> tuple[Any, Any]:
    package, path = tenseal(), Path(path)
    try:
        return package, package.context_from(bytes.fromhex(path.read_text(encoding="ascii")))
    except (OSError, ValueError, RuntimeError) as error:
        raise MilError(f"{path}: not a key of ours ({error}); `mil site key` makes one for all sites") from error


def _sum(parts: Sequence[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _packed(parts: Sequence[bytes]) -> Tensor:
    """Byte strings end to end, each after its length, as uint8."""
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return torch.from_numpy(np.frombuffer(whole, np.uint8).copy())


def _unpacked(sealed: Tensor) -> Iterator[bytes]:
    whole, start = sealed.numpy().tobytes(), 0
    while start < len(whole):
        size = int.from_bytes(whole[start : start + 8], "little")
        if start + 8 + size > len(whole):
            raise MilError("an encrypted message is cut short; refused")
        yield whole[start + 8 : start + 8 + size]
        start += 8 + size
