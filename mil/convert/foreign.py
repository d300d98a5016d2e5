"""What a file of another tool says, in common terms, and the registry of those who can read one.

A reader finds the slides of a folder and reads one of them. Layouts after the tools' own code; see each reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil.config import EncoderSpec
from mil.errors import CorruptFile, MilError
from mil.registry import Registry

SLIDEFLOW = ".index.npz"  # ends the name of a file with the positions of the tiles whose features lie beside it
SMALLEST, LARGEST = 1e-6, 2.0**31 - 1  # of a side in pixels or microns, or of microns a pixel


@dataclass(frozen=True)
class ForeignFeatures:
    """What the files do not say and the user does."""

    folder: Path
    encoder: str | None = None
    """Name of the encoder; where the files name another one, they come first, unless `weights_sha256` is given."""
    mpp: float | None = None
    """Microns a level-0 pixel of the slides; without it coordinates in microns and DeepZoom addresses give no corners."""
    tile_mpp: float | None = None
    """Microns a pixel of the tiles, where the files do not say."""
    weights_sha256: str | None = None
    """Hash of the encoder's weights, where the user knows it."""
    expected: tuple[str, EncoderSpec] | None = None
    """The encoder that must have made them: the cohort's name for it and its settings; none: any."""

    def __post_init__(self) -> None:
        for name, value in (("mpp", self.mpp), ("tile_mpp", self.tile_mpp)):
            if value is not None and not SMALLEST <= value <= LARGEST:
                raise MilError(f"{name} {value} is not a positive number of microns a pixel")


@dataclass(frozen=True)
class Foreign:
    """Features of one slide: (tiles, width), and the tiles' corners (tiles, 2) in level-0 pixels, None where unknown."""

    features: np.ndarray
    coords: np.ndarray | None
    encoder: str
    size_px: int | None = None
    """Side of a tile in its own pixels."""
    tile_mpp: float | None = None
    mpp: float | None = None
    """Microns a level-0 pixel."""
    side_level0: float | None = None
    """Side of a tile in level-0 pixels."""


@dataclass(frozen=True)
class LayoutReader:
    """One tool's layout."""

    tool: str
    find: Callable[[Path], dict[str, Path]]
    """A folder -> slides by id, each with the file (or folder) of its features."""
    read: Callable[[Path, ForeignFeatures], Foreign]


READERS: Registry[LayoutReader] = Registry("layout")


def by_suffix(*patterns: str) -> Callable[[Path], dict[str, Path]]:
    """A finder of files by pattern; a slide that two files claim is an error."""

    def find(folder: Path) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for pattern in patterns:
            for path in sorted(
                path for path in folder.glob(pattern) if path.is_file() and not path.name.endswith(SLIDEFLOW)
            ):
                if path.stem in paths and paths[path.stem].suffix == path.suffix:
                    raise MilError(f"{path} and {paths[path.stem]} both claim slide '{path.stem}'; convert them apart")
                paths.setdefault(path.stem, path)
        return paths

    return find


def number(about: Mapping[str, Any], key: str, path: Path) -> float | None:
    """The positive number that a file states under `key`, None where it states nothing; `CorruptFile` for anything else."""
    value = about.get(key)
    if value is None:
        return None
    try:
        stated = float(np.asarray(value).item())
    except (TypeError, ValueError):
        stated = np.nan
    if isinstance(value, bool) or not SMALLEST <= stated <= LARGEST:
        raise CorruptFile(f"{path}: {key} is {str(value)[:40]!r}, not a positive number")
    return stated


def whole(about: Mapping[str, Any], key: str, path: Path) -> int | None:
    """As `number`, of whole numbers."""
    stated = number(about, key, path)
    if stated is not None and not stated.is_integer():
        raise CorruptFile(f"{path}: {key} is {stated}, not a whole number")
    return None if stated is None else int(stated)


def text(about: Mapping[str, Any], key: str) -> str | None:
    """The text that a file states under `key`, None where it states none."""
    value = about.get(key)
    return value if isinstance(value, str) and value and value.isprintable() else None


def checked_features(features: np.ndarray, path: Path) -> np.ndarray:
    """(tiles, width) of numbers, a leading axis of one taken off; `CorruptFile` for anything else."""
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or features.dtype.kind != "f" or not features.shape[1]:
        raise CorruptFile(f"{path}: features are {features.dtype} {features.shape}, not numbers of (tiles, width)")
    if not np.isfinite(features).all():
        raise CorruptFile(f"{path}: features hold values that are not finite")
    return features


def checked_coords(coords: np.ndarray, tiles: int, path: Path) -> np.ndarray:
    """(tiles, 2) whole numbers, level-0 pixels; of wider coordinates the first two."""
    if coords.ndim == 3 and coords.shape[0] == 1:
        coords = coords[0]
    if coords.ndim != 2 or coords.shape[1] < 2 or len(coords) != tiles:
        raise CorruptFile(f"{path}: coordinates are {coords.shape} for {tiles} tiles")
    if coords.dtype.kind not in "iuf" or not (np.abs(coords[:, :2].astype(np.float64)) <= LARGEST).all():
        raise CorruptFile(f"{path}: coordinates are {coords.dtype}, up to {coords.max()}, not numbers of pixels")
    return np.rint(coords[:, :2].astype(np.float64)).astype(np.int64)
