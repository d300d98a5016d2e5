"""Tiles -> the picture that a person checks them on: tissue outlined, the grid drawn, flagged tiles in the colour of their flag."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from mil.errors import MilError, SlideError
from mil.files import replacing
from mil.slides.slide import Slide
from mil.specs.slides import QualitySpec
from mil.tiles.quality import flagged
from mil.tiles.tiles import Tiles

LONGEST_PX = 2048
OUTLINE, TILE = (0, 160, 60), (60, 90, 200)
FLAG_COLOURS = {
    "missing": (0, 0, 0),
    "pen": (220, 0, 160),
    "blurred": (240, 140, 0),
    "coverslip": (0, 170, 190),
    "blank": (130, 130, 130),
}


def draw_thumbnail(slide: Slide, tiles: Tiles, quality: QualitySpec | None) -> np.ndarray:
    """The thumbnail, at most 2048 pixels a side, with tissue outlined in green and tiles in blue or the colour of their flag."""
    height, width = tiles.thumbnail.shape[:2]
    shrink = max(1.0, max(height, width) / LONGEST_PX)
    size = max(round(width / shrink), 1), max(round(height / shrink), 1)
    picture = cv2.resize(tiles.thumbnail, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(tiles.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    scale = np.array([size[0] / slide.width, size[1] / slide.height])
    corners = np.rint(tiles.coords * scale).astype(int)
    opposite = np.rint((tiles.coords + tiles.size_level0) * scale).astype(int)
    colours = np.full((len(corners), 3), TILE)
    for flag, raised in reversed(flagged(tiles, quality).items()):  # pen ink is drawn as such, though it is blurred too
        colours[raised] = FLAG_COLOURS[flag]
    plain_first = np.argsort((colours != TILE).any(axis=1), kind="stable")
    for index in plain_first:
        cv2.rectangle(picture, corners[index].tolist(), opposite[index].tolist(), colours[index].tolist(), 1)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, OUTLINE, 1)
    return picture


def read_jpeg(path: Path) -> np.ndarray:
    """The picture that `write_jpeg` wrote, RGB (h, w, 3); `MilError` where it is damaged: OpenCV would fill the rest with grey."""
    try:
        return simplejpeg.decode_jpeg(path.read_bytes(), "RGB", fastdct=False, fastupsample=False, strict=True)
    except (OSError, ValueError) as error:
        raise MilError(f"{path} cannot be read as a JPEG; delete it and run `mil tile` again") from error


def write_jpeg(path: Path, picture: np.ndarray, quality: int = 85) -> None:
    """Write an RGB picture as JPEG, atomically."""
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise SlideError("unreadable", f"{path.name}: its picture cannot be encoded as JPEG")
    with replacing(path) as partial:
        partial.write_bytes(data.tobytes())
