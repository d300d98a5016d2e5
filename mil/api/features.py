"""Encoders on arrays, and feature files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.encoders.entry import Encoder
from mil.errors import MilError
from mil.features.engine import EncoderEngine

BATCH = 256
"""Tiles that are in the device's memory at once."""


def load_encoder(name: str = "efficientnet_lite0", weights: str | None = None) -> Encoder:
    """An encoder with its weights, on the CPU; `mil encoders list` has the names.

    `weights`: a file, the folder that `mil encoders fetch` filled, or `random`; default: the installed package's.

    >>> load_encoder("colour").width
    6
    """
    return build(EncoderSpec(name=name, weights=weights))


def encode(encoder: Encoder, tiles: np.ndarray) -> np.ndarray:
    """Features of tiles: uint8 (tiles, height, width, 3) -> float16 (tiles, encoder.width).

    Uses a GPU where there is one. The vector of a tile does not depend on the other tiles.

    >>> import numpy as np
    >>> encode(load_encoder("colour"), np.full((2, 8, 8, 3), 255, np.uint8))[0].tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
        raise MilError(f"tiles are {tiles.dtype} {tiles.shape}; give uint8 (tiles, height, width, 3)")
    if not len(tiles):
        return np.zeros((0, encoder.width), np.float16)
    engine = EncoderEngine(encoder, EncoderSpec())
    return np.concatenate([engine(tiles[start : start + BATCH]) for start in range(0, len(tiles), BATCH)])


@dataclass(frozen=True)
class FeatureFile:
    """Features of one slide: `features` (tiles, width); `coords` int64 (tiles, 2), corners (x, y) in level-0 pixels."""

    features: np.ndarray
    coords: np.ndarray
    about: dict[str, Any]
    """Attributes of the file: the encoder, the hash of its weights, size and resolution of the tiles."""


def read_features(path: str | Path) -> FeatureFile:
    """Read a feature file of the workflow, of `mil convert` or of `write_features`; its checksum must hold.

    A `MilError` names a file that is missing, damaged or of another kind.
    """
    (features, coords), about = hdf5.read_with_attributes(path, "features", "coords")
    return FeatureFile(features, coords, about)


def write_features(
    path: str | Path,
    features: np.ndarray,
    coords: np.ndarray,
    *,
    encoder: str,
    size_px: int,
    tile_mpp: float,
    weights_sha256: str = "unknown",
) -> None:
    """Write a feature file: complete, with a checksum, or not at all.

    `features` float (tiles, width), `coords` (tiles, 2) level-0 corners; `tile_mpp`: microns per pixel of the tiles.
    """
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise MilError(
            f"{path}: features {features.shape} and coords {coords.shape} are not (tiles, width) and (tiles, 2)"
        )
    if features.dtype.kind != "f" or not np.isfinite(features).all():
        raise MilError(
            f"{path}: features are {features.dtype}, or hold NaN or infinity; give finite floating-point numbers"
        )
    if not (np.isfinite(coords).all() and (coords == np.round(coords)).all()):
        raise MilError(f"{path}: coords hold a number that is not whole; give corners in pixels of level 0")
    if not (size_px > 0 and 0 < tile_mpp < np.inf):
        raise MilError(f"{path}: size_px {size_px} and tile_mpp {tile_mpp} must be above 0")
    about = {"encoder": encoder, "weights_sha256": weights_sha256, "size_px": size_px, "tile_mpp": tile_mpp}
    with hdf5.writing(path) as writer:
        writer.append("features", features)
        writer.append("coords", coords.astype(np.int64))
        writer.annotate(about)
