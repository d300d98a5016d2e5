"""The layouts that are written: TRIDENT's and STAMP's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from mil import hdf5
from mil.errors import MilError
from mil.registry import Registry

Write = Callable[[Path, Path], Path]
"""A features file of ours and the folder to write into -> the file written."""

WRITERS: Registry[Write] = Registry("layout")
STAMP_VERSION = "2.0.0"  # STAMP refuses files of a version newer than its own; the layout is that of 2.0


@WRITERS.register("trident")
def write_trident(path: Path, folder: Path) -> Path:
    """`features_{encoder}/{slide}.h5` with features, coords and TRIDENT's attributes on both."""
    features, coords, about = _ours(path)
    tiling = hdf5.attributes(path, on="coords")
    target = folder / f"features_{about['encoder']}" / path.name
    with hdf5.writing(target) as writer:
        writer.append("features", features)
        writer.append("coords", coords)
        name = {"name": unquote(path.stem), "savetodir": str(target.parent)}
        writer.annotate(name | {"encoder": about["encoder"]}, on="features")
        writer.annotate(name | tiling, on="coords")
    return target


@WRITERS.register("stamp")
def write_stamp(path: Path, folder: Path) -> Path:
    """`{slide}.h5` with feats (float16) and coords in microns (float32), and STAMP's attributes."""
    features, coords, about = _ours(path)
    if not about.get("mpp") or not about.get("size_px") or not about.get("tile_mpp"):
        raise MilError(f"{path}: does not say its microns a pixel and the tiles' size, which STAMP's layout needs")
    target = folder / path.name
    with hdf5.writing(target) as writer:
        writer.append("feats", features.astype(np.float16))
        writer.append("coords", (coords * float(about["mpp"])).astype(np.float32))
        writer.annotate(
            {
                "stamp_version": STAMP_VERSION,
                "extractor": about["encoder"],
                "unit": "um",
                "tile_size_um": float(about["size_px"]) * float(about["tile_mpp"]),
                "tile_size_px": int(about["size_px"]),
                "code_hash": str(about.get("weights_sha256", ""))[:8],
                "feat_type": "tile",
            }
        )
    return target


def _ours(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    about = hdf5.attributes(path)
    if not about.get("coords_known", 1):
        raise MilError(
            f"{path}: the tiles' coordinates are not known, and the layout needs them; extract the slide again"
        )
    features, coords = hdf5.read(path, "features", "coords")
    return features, coords, about
