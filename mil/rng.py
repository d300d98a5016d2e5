"""Random streams derived by name, so that no result depends on the order in which things are visited."""

import hashlib

import numpy as np


def seed_of(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream `names` under `seed`, e.g. `seed_of(0, "fold", 3, "site", "A")`."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator for the stream `names` under `seed`."""
    return np.random.default_rng(seed_of(seed, *names))
