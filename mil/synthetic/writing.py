"""Pixels -> a pyramidal TIFF of JPEG tiles, as one brand of scanner writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile

from mil.synthetic.nuclei import DRAW_MPP

APERIO = "Aperio Image Library v12.0.15 \r\n"
UM_A_CM, UM_AN_INCH = 10_000, 25_400
THUMBNAIL_PX = 512


@dataclass(frozen=True)
class Scanner:
    """How a hospital's scanner writes its files."""

    header: Literal["aperio", "centimetre", "inch"]
    """Where the resolution stands: in Aperio's description (.svs), or in TIFF's tags a centimetre or an inch (.tif)."""
    mpp: float
    tile_px: int
    quality: int
    """Of JPEG, 0-100."""
    colour: Literal["rgb", "ycbcr"]
    """What the JPEG tiles hold; YCbCr with halved chroma."""
    downsample: int
    """From one level to the next."""
    levels: int

    @property
    def suffix(self) -> str:
        """Of the file name."""
        return ".svs" if self.header == "aperio" else ".tif"


def write_slide(path: Path, pixels: np.ndarray, scanner: Scanner, slide_id: str, with_mpp: bool = True) -> None:
    """Write RGB `pixels` at `DRAW_MPP` as the scanner's pyramid; without mpp, nothing in the file tells the scale."""
    level = _resized(pixels, DRAW_MPP / scanner.mpp, cv2.INTER_CUBIC)
    full = (level.shape[1], level.shape[0])
    tags = _Tags(scanner, slide_id, full, with_mpp)
    with tifffile.TiffWriter(path) as tiff:
        for number in range(scanner.levels):
            _write_level(tiff, level, scanner, tags.of_level(number, level), reduced=number > 0)
            if number == 0 and scanner.header == "aperio":
                _write_thumbnail(tiff, pixels, tags)
            if number + 1 < scanner.levels:
                level = _resized(level, 1 / scanner.downsample, cv2.INTER_AREA)


def _resized(pixels: np.ndarray, factor: float, how: int) -> np.ndarray:
    if factor == 1:
        return pixels
    height, width = (max(round(side * factor), 1) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=how)


def _write_level(
    tiff: tifffile.TiffWriter, pixels: np.ndarray, scanner: Scanner, tags: dict[str, Any], reduced: bool
) -> None:
    chroma = (2, 2) if scanner.colour == "ycbcr" else (1, 1)
    tiff.write(
        pixels,
        tile=(scanner.tile_px, scanner.tile_px),
        photometric="rgb",  # of the pixels given; the tiles hold `outcolorspace`
        compression="jpeg",
        compressionargs={"level": scanner.quality, "outcolorspace": scanner.colour},
        subsampling=chroma,
        subfiletype=1 if reduced else 0,
        metadata=None,
        maxworkers=1,
        **tags,
    )


def _write_thumbnail(tiff: tifffile.TiffWriter, pixels: np.ndarray, tags: "_Tags") -> None:
    """Aperio's second image: a small one in strips."""
    small = _resized(pixels, THUMBNAIL_PX / max(pixels.shape[:2]), cv2.INTER_AREA)
    size = f"{tags.full[0]}x{tags.full[1]} -> {small.shape[1]}x{small.shape[0]} - "
    tiff.write(
        small, compression="jpeg", photometric="rgb", rowsperstrip=16, metadata=None, maxworkers=1, software=False,
        description=f"{APERIO}{size}|AppMag = 40",
    )  # fmt: skip


@dataclass(frozen=True)
class _Tags:
    """What each level of one file says of itself."""

    scanner: Scanner
    slide_id: str
    full: tuple[int, int]
    with_mpp: bool

    def of_level(self, number: int, pixels: np.ndarray) -> dict[str, Any]:
        """Arguments of `TiffWriter.write` for level `number`."""
        if self.scanner.header == "aperio":
            return {"description": self._aperio(number, pixels), "software": False}
        tags: dict[str, Any] = {"software": "SlideWriter 3.1", "description": self.slide_id if number == 0 else None}
        if self.scanner.header == "inch":  # another brand says who made it
            tags["extratags"] = [(271, 2, None, "Boreal Optics", True), (272, 2, None, "BX-20", True)]
        if self.with_mpp:
            unit, um = ("CENTIMETER", UM_A_CM) if self.scanner.header == "centimetre" else ("INCH", UM_AN_INCH)
            across, down = (
                um / (self.scanner.mpp * full / side) for full, side in zip(self.full, pixels.shape[1::-1], strict=True)
            )
            tags |= {"resolution": (across, down), "resolutionunit": unit}
        return tags

    def _aperio(self, number: int, pixels: np.ndarray) -> str:
        width, height = self.full
        tile, coding = self.scanner.tile_px, f"JPEG/RGB Q={self.scanner.quality}"
        if number > 0:
            size = f"{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) -> {pixels.shape[1]}x{pixels.shape[0]}"
            return f"{APERIO}{size} {coding}"
        about = {"AppMag": round(10 / self.scanner.mpp), "StripeWidth": 2040, "ScanScope ID": "SS0000"}
        about["Filename"] = self.slide_id
        scale = {"MPP": f"{self.scanner.mpp:.4f}"} if self.with_mpp else {}
        properties = "|".join(f"{name} = {value}" for name, value in {**about, **scale}.items())
        return f"{APERIO}{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) {coding}|{properties}"
