"""A made slide at 40x for measurements: H&E-like texture in compressed tiles of 256 px."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

MPP = 0.25  # microns per pixel of level 0
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG 4:2:0": {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)},
    "JPEG 4:4:4": {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (1, 1)},
    "JPEG 2000": {"photometric": "rgb", "compression": "jpeg2000"},
}


def texture(side: int, seed: int) -> np.ndarray:
    """Pink and purple at several scales, as much work for a JPEG decoder as tissue is: uint8 (side, side, 3)."""
    generator = np.random.default_rng(seed)
    picture = np.full((side, side, 3), (205, 150, 195), np.float32)
    for grain, depth in ((256, 25), (32, 25), (8, 20), (2, 12)):
        noise = generator.normal(size=(side // grain, side // grain)).astype(np.float32)
        noise = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        picture -= depth * np.clip(noise, -1, 2)[..., None] * np.array([1, 1.2, 0.6], np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_slide(path: Path, side: int, seed: int = 0, quality: int = 80, form: str = "JPEG 4:2:0") -> Path:
    """A square slide of `side` pixels, a multiple of 2048, in one of `FORMATS`; `quality` of JPEG, 0 to 100."""
    block = texture(2048, seed)
    pixels = np.tile(block, (side // 2048, side // 2048, 1))
    settings = FORMATS[form]
    level = {"compressionargs": {"level": quality}} if settings["compression"] in ("jpeg", "jpeg2000") else {}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        tiff.write(pixels, tile=(256, 256), **settings, **level, **resolution)
    return path


def grid(side: int, read_px: int) -> np.ndarray:
    """Corners of the squares of `read_px` level-0 pixels, row by row."""
    along = np.arange(side // read_px) * read_px
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2).astype(np.int64)
