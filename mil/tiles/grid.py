"""A slide -> the tiles of a regular grid that hold tissue.

The grid starts at the slide's top left corner. Corner (i, j) is `rint((i, j) * stride)` in level-0 pixels, each rounded on its own
so that nothing drifts, and to multiples of 8 where decoding is `scaled`. Tiles are in reading order: row by row, left to right.
"""

import math

import cv2
import numpy as np

from mil.config import TileSpec
from mil.errors import SlideError
from mil.slides.slide import Slide
from mil.tiles.quality import assess
from mil.tiles.tiles import Tiles
from mil.tissue import find_tissue
from mil.tissue.unscanned import unscanned

SCALED_STEP = 8  # the largest divisor of libjpeg's scaled decoding
MOST_SQUARES = 2**25  # of a grid; each takes some 50 bytes


def tile_slide(slide: Slide, spec: TileSpec, mask: np.ndarray | None = None, threads: int | None = None) -> Tiles:
    """Find the tissue on the thumbnail and the tiles of the grid that hold at least `spec.min_tissue` of it.

    `mask` bool, of any size, stands for the whole slide and replaces the tissue method.
    """
    check_magnification(slide, spec)
    thumbnail = slide.thumbnail(spec.tissue.mpp, threads, spec.unreadable == "drop")
    if mask is None:
        mask = find_tissue(thumbnail, spec.tissue.mpp, spec.tissue)
    columns, rows = grid(slide, spec)
    if len(columns) * len(rows) > MOST_SQUARES:
        raise SlideError(
            "too_many_tiles",
            f"{slide.path.name}: a grid of {len(columns):,} x {len(rows):,} squares; raise stride_px, or check the mpp",
        )
    side_x, side_y = (spec.size_px * px for px in slide.level0_px(spec.mpp))
    per_x, per_y = slide.width / mask.shape[1], slide.height / mask.shape[0]
    share = shares(mask, columns / per_x, rows / per_y, side_x / per_x, side_y / per_y)
    row, column = np.nonzero(share >= max(spec.min_tissue, np.finfo(np.float32).tiny))
    missing, missing_share = _missing(slide, thumbnail, spec.tissue.mpp, columns, rows, (side_x, side_y))
    tiles = Tiles(
        coords=np.stack([columns[column], rows[row]], axis=1).astype(np.int64),
        tissue=share[row, column],
        size_level0=(side_x, side_y),
        mask=mask,
        thumbnail=thumbnail,
        thumbnail_mpp=spec.tissue.mpp,
        missing_share=missing_share,
        scores={} if spec.quality is None or spec.quality.missing is None else {"missing": missing[row, column]},
    )
    if len(tiles.coords) > spec.max_tiles:
        raise SlideError(
            "too_many_tiles",
            f"{slide.path.name}: {len(tiles.coords):,} tiles, more than max_tiles ({spec.max_tiles:,})",
        )
    return tiles if spec.quality is None else assess(slide, tiles, spec, spec.quality, threads)


def grid(slide: Slide, spec: TileSpec) -> tuple[np.ndarray, np.ndarray]:
    """Left edges and top edges of the grid in level-0 pixels."""
    stride = spec.stride_px or spec.size_px
    step = SCALED_STEP if spec.decoding == "scaled" else 1
    per_x, per_y = slide.level0_px(spec.mpp)
    overhang = spec.edge == "pad"
    return (
        _edges(slide.width, stride * per_x, spec.size_px * per_x, step, overhang),
        _edges(slide.height, stride * per_y, spec.size_px * per_y, step, overhang),
    )


def shares(mask: np.ndarray, left: np.ndarray, top: np.ndarray, side_x: float, side_y: float) -> np.ndarray:
    """Share of `mask` in each square of a grid, float32 (rows, columns); in mask pixels, fractions counted as such."""
    total = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)
    down = _between(total, top + side_y, axis=0) - _between(total, top, axis=0)
    inside = _between(down, left + side_x, axis=1) - _between(down, left, axis=1)
    return np.clip(inside / (side_x * side_y), 0, 1).astype(np.float32)


def _missing(
    slide: Slide, thumbnail: np.ndarray, mpp: float, columns: np.ndarray, rows: np.ndarray, side: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Share of each square of the grid, and of the slide, for which the file holds no pixels or the black of what was not scanned."""
    black = unscanned(thumbnail, mpp)
    maps = [(black, (slide.width / black.shape[1], slide.height / black.shape[0]))]
    gaps = slide.reader.gaps()
    if gaps is not None:
        maps.append((gaps.cells, gaps.cell_px))
    missing = [shares(cells, columns / x, rows / y, side[0] / x, side[1] / y) for cells, (x, y) in maps]
    return np.minimum(sum(missing), np.float32(1)), min(sum(float(cells.mean()) for cells, _ in maps), 1.0)


def check_magnification(slide: Slide, spec: TileSpec) -> None:
    """`SlideError('too_coarse')` where the slide would have to be magnified by more than the spec allows."""
    magnification = max(1 / px for px in slide.level0_px(spec.mpp))
    if magnification > spec.max_magnification * 1.01:
        raise SlideError(
            "too_coarse",
            f"{slide.path.name}: has {slide.mpp:g} microns a pixel; tiles of {spec.mpp:g} would be magnified {magnification:.3g} "
            f"times, more than max_magnification ({spec.max_magnification:g})",
        )


def _edges(length: int, stride: float, side: float, step: int, overhang: bool) -> np.ndarray:
    """Starts of the squares that fit into `length` (to half a pixel), or with `overhang` that begin in it."""
    reach = length - 0.5 if overhang else length + 0.5 - side
    starts = np.rint(np.arange(math.floor(reach / stride) + 1) * stride / step).astype(np.int64) * step
    return starts[starts < length if overhang else starts + side <= length + step / 2]


def _between(total: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Cumulative sums `total` at fractional positions `at` along `axis`."""
    at = np.clip(at, 0, total.shape[axis] - 1)
    low = np.minimum(at.astype(np.int64), total.shape[axis] - 2)
    weight = np.expand_dims(at - low, 1 - axis)
    return np.take(total, low, axis) * (1 - weight) + np.take(total, low + 1, axis) * weight
