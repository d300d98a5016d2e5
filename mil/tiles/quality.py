"""Tiles -> what is wrong with each: pixels missing, ink of pens, blur, the coverslip's edge, bare glass. Scores from 0 to 1, flags by
threshold.

Pens and coverslip edges are found on the thumbnail; blur and blankness on the tile's own pixels at `QualitySpec.mpp`.
"""

from dataclasses import replace

import cv2
import numpy as np

from mil.config import TileSpec
from mil.slides.slide import NEAREST_LEVEL, Slide
from mil.specs.slides import QualitySpec
from mil.tiles.tiles import Tiles
from mil.tissue.contrast import LEAST_DENSITY, density, glass_of
from mil.tissue.ink import ink
from mil.tissue.unscanned import BLACKEST, unscanned, without_unscanned

FLAGS = ("missing", "pen", "blurred", "coverslip", "blank")
EDGE_UM = 3_000.0  # tissue has no straighter edge than this
EDGE_GAP_UM = 250.0
LEAST_FILL = 0.5  # share of a tile that is black where a converter filled in for one that it could not decode; pigment covers less
BULK_UM = 120.0  # tissue wider than this cannot be a line


def assess(slide: Slide, tiles: Tiles, spec: TileSpec, quality: QualitySpec, threads: int | None) -> Tiles:
    """The tiles with their scores (`missing` they have); those with a flag in `quality.drop` left out and counted."""
    thumbnail = without_unscanned(tiles.thumbnail, unscanned(tiles.thumbnail, tiles.thumbnail_mpp))
    glass, _ = glass_of(thumbnail)
    scores = dict(tiles.scores)
    dropped: dict[str, np.ndarray] = {}
    if quality.pen is not None:
        scores["pen"] = _share(slide, tiles, np.any(ink(thumbnail, glass, tiles.thumbnail_mpp), axis=0))
    if quality.coverslip is not None:
        lines = straight_edges(thumbnail, glass, tiles.thumbnail_mpp)
        # A line of one pixel across a square of n pixels covers 1 / n of it.
        side_px = tiles.size_level0[0] / slide.width * lines.shape[1]
        scores["coverslip"] = np.minimum(_share(slide, tiles, lines) * np.float32(side_px), np.float32(1))
    if quality.blurred is not None or quality.blank is not None:
        seen, unreadable = _looked_at(slide, tiles, spec, quality, glass, threads)
        seen["missing"] = np.maximum(seen["missing"], scores.get("missing", 0))
        scores |= {flag: score for flag, score in seen.items() if getattr(quality, flag) is not None}
        dropped["unreadable"] = unreadable
    tiles = replace(tiles, scores={flag: scores[flag] for flag in FLAGS if flag in scores})
    return _without_dropped(tiles, dropped, quality)


def flagged(tiles: Tiles, quality: QualitySpec | None) -> dict[str, np.ndarray]:
    """By flag, which tiles (bool (n,)) reach the spec's score."""
    if quality is None:
        return {}
    return {flag: scores >= getattr(quality, flag) for flag, scores in tiles.scores.items()}


def straight_edges(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> np.ndarray:
    """Pixels on straight lines longer than tissue makes, bool (h, w), one pixel wide.

    The steps between scanned and unscanned areas (pure white) are no edges of the glass and are made even first.
    """
    pixels = thumbnail.copy()
    pixels[(thumbnail >= 254).all(axis=2)] = np.rint(glass).astype(np.uint8)
    densities = density(cv2.GaussianBlur(pixels, (0, 0), 1.0), glass)
    dark = (densities > LEAST_DENSITY).astype(np.uint8)
    bulk = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((max(round(BULK_UM / mpp), 3),) * 2, np.uint8))
    edges = cv2.Canny((np.minimum(densities, 1) * 255).astype(np.uint8), 8, 16)
    edges[cv2.erode(bulk, np.ones((5, 5), np.uint8)) > 0] = 0
    edges = cv2.dilate(edges, np.ones((3, 3), np.uint8))  # a slanted line is a staircase, and may bend by a pixel
    length = EDGE_UM / mpp
    lines = np.zeros(thumbnail.shape[:2], np.uint8)
    segments = cv2.HoughLinesP(
        edges, 1, np.pi / 720, threshold=round(length / 2), minLineLength=length, maxLineGap=EDGE_GAP_UM / mpp
    )
    for x0, y0, x1, y1 in segments.reshape(-1, 4).astype(int).tolist() if segments is not None else []:
        cv2.line(lines, (x0, y0), (x1, y1), 1, 1)
    return lines.astype(bool)


def blur_of(grey: np.ndarray) -> float:
    """0 crisp ... 1 without edges: how little is lost when the image is blurred once more (Crete et al. 2007, doi:10.1117/12.702790)."""
    image = grey.astype(np.float32)
    worst = 0.0
    for axis, size in ((0, (1, 9)), (1, (9, 1))):
        before = np.abs(np.diff(image, axis=axis))
        after = np.abs(np.diff(cv2.blur(image, size), axis=axis))
        total = float(before.sum())
        lost = float(np.maximum(before - after, 0).sum())
        worst = max(worst, (total - lost) / total if total else 1.0)
    return worst


def _looked_at(
    slide: Slide, tiles: Tiles, spec: TileSpec, quality: QualitySpec, glass: np.ndarray, threads: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Blur, blankness and black fill (from half a tile on) of each tile from its pixels, and which tiles cannot be read (where the spec lets them be dropped)."""
    blurred, blank, black = (np.zeros(len(tiles.coords), np.float32) for _ in range(3))
    unreadable = np.ones(len(tiles.coords), bool)
    size_px = max(round(spec.size_px * spec.mpp / quality.mpp), 16)
    mpp = spec.size_px * spec.mpp / size_px
    how = replace(NEAREST_LEVEL, drop_unreadable=spec.unreadable == "drop")
    for indices, pixels in slide.read_tiles(tiles.coords, size_px, mpp, threads, how):
        unreadable[indices] = False
        for index, tile in zip(indices.tolist(), pixels, strict=True):
            blurred[index] = blur_of(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY))
            blank[index] = (density(tile, glass) < spec.tissue.min_density).mean()
            black[index] = (cv2.inRange(tile, (0, 0, 0), (BLACKEST,) * 3) > 0).mean()
    return {
        "blurred": blurred,
        "blank": blank,
        "missing": np.where(black < LEAST_FILL, np.float32(0), black),
    }, unreadable


def _without_dropped(tiles: Tiles, dropped: dict[str, np.ndarray], quality: QualitySpec) -> Tiles:
    raised = flagged(tiles, quality)
    dropped = dropped | {flag: raised[flag] for flag in quality.drop if flag in raised}
    keep = np.ones(len(tiles.coords), bool)
    counts = {}
    for flag, bad in dropped.items():
        counts[flag] = int((bad & keep).sum())
        keep &= ~bad
    scores = {flag: values[keep] for flag, values in tiles.scores.items()}
    return replace(tiles, coords=tiles.coords[keep], tissue=tiles.tissue[keep], scores=scores, dropped=counts)


def _share(slide: Slide, tiles: Tiles, mask: np.ndarray) -> np.ndarray:
    """Share of `mask`, a map of the whole slide, in each tile, float32 (n,)."""
    scale = np.array([mask.shape[1] / slide.width, mask.shape[0] / slide.height])
    low = np.clip(np.rint(tiles.coords * scale).astype(int), 0, np.array(mask.shape[::-1]) - 1)
    high = np.clip(np.rint((tiles.coords + tiles.size_level0) * scale).astype(int), low + 1, mask.shape[::-1])
    total = cv2.integral(mask.astype(np.uint8))
    (x0, y0), (x1, y1) = low.T, high.T
    inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return (inside / ((x1 - x0) * (y1 - y0))).astype(np.float32)
