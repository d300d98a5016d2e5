"""Masks that people bring or take away: GeoJSON in level-0 pixels (QuPath's), or a PNG of the whole slide at any size."""

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mil.errors import SlideError
from mil.files import why_no_file
from mil.slides.readers.image import MAX_IMAGE_PIXELS

MAX_GEOJSON_BYTES = 2**28
FARTHEST = 2**30  # pixels of a corner from the slide's
MAX_CROSSINGS = 2**24  # of an outline and the rows of pixels
POLYGONS = {"Polygon": 1, "MultiPolygon": 2}
IGNORED = "Ignore"  # QuPath's `Ignore*`
Polygons = list[list[np.ndarray]]


def read_mask(path: Path, size: tuple[int, int], slide_size: tuple[int, int]) -> np.ndarray:
    """The mask at `path` as bool (height, width) of `size` = (width, height), for a slide of `slide_size` level-0 pixels."""
    if why := why_no_file(path):
        raise SlideError("no_mask", f"mask {path} {why}; see tiles.tissue.masks")
    if path.suffix.lower() not in {".geojson", ".json"}:
        return _pixels(path, size, slide_size)
    polygons, ignored = _polygons(path)
    scale = size[0] / slide_size[0], size[1] / slide_size[1]
    corners = np.concatenate([np.empty((0, 2)), *(polygon[0] for polygon in polygons)])
    mask = _drawn(polygons, size, scale)
    least = np.minimum(1, np.array(slide_size) / 2)  # of polygons from 0 to 1, which are in shares of the slide
    if len(corners) and ((corners.max(axis=0) <= least).any() or (corners.min(axis=0) >= slide_size).any()):
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        raise SlideError(
            "no_mask",
            f"mask {path}: its polygons span x {left:g} to {right:g} and y {top:g} to {bottom:g}, the slide {slide_size[0]} x "
            f"{slide_size[1]} pixels; export them in level-0 pixels, of this slide",
        )
    return mask & ~_drawn(ignored, size, scale)


def to_geojson(mask: np.ndarray, slide_size: tuple[int, int]) -> str:
    """The mask's outlines and holes as a GeoJSON collection in level-0 pixels, one polygon a piece, classified 'Tissue'."""
    height, width = mask.shape
    scale = np.array([slide_size[0] / width, slide_size[1] / height])
    # Outlines run through pixel middles; on a mask blown up three times they come within a sixth of a pixel of the edges.
    outlines, tree = _outlines(mask)
    features = []
    for index, outline in enumerate(outlines):
        if tree[index][3] >= 0:
            continue
        rings = [_ring(outline, scale)]
        hole = tree[index][2]
        while hole >= 0:
            rings.append(_ring(outlines[hole], scale))
            hole = tree[hole][0]
        properties = {"objectType": "annotation", "classification": {"name": "Tissue", "color": [0, 160, 60]}}
        geometry = {"type": "Polygon", "coordinates": rings}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def _outlines(mask: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Corner points (n, 2) along pixel edges, in pixels, and OpenCV's tree (next, previous, first hole, parent)."""
    thrice = cv2.resize(mask.astype(np.uint8), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    outlines, tree = cv2.findContours(thrice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # 3k + 0..2 are the columns of pixel k: the first one's middle stands for the edge k, the last one's for k + 1.
    return [(outline[:, 0, :] + 2) // 3 for outline in outlines], tree[0] if outlines else np.array(())


def _ring(points: np.ndarray, scale: np.ndarray) -> list[list[float]]:
    ring = np.round(points * scale, 1).tolist()
    return [*ring, ring[0]]


def _polygons(path: Path) -> tuple[Polygons, Polygons]:
    """Rings of every polygon of a GeoJSON file: what is tissue, and what is classified as `Ignore*`."""
    if path.stat().st_size > MAX_GEOJSON_BYTES:
        raise SlideError("no_mask", f"mask {path} has {path.stat().st_size:,} bytes; simplify its outlines")
    polygons: tuple[Polygons, Polygons] = [], []
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        features = data["features"] if isinstance(data, dict) and "features" in data else data
        for number, feature in enumerate(features if isinstance(features, list) else [features]):
            geometry, ignored = feature.get("geometry", feature) or {}, _is_ignored(feature)
            kind = geometry.get("type")
            if kind in POLYGONS:
                shapes = geometry["coordinates"] if POLYGONS[kind] == 2 else [geometry["coordinates"]]
                polygons[ignored].extend(
                    [np.asarray(ring, float)[:, [0, 1]] for ring in polygon] for polygon in shapes if polygon
                )
            elif not ignored:
                raise SlideError(
                    "no_mask",
                    f"mask {path}: its object {number} is {'without a shape' if kind is None else f'a {kind}'}, not a Polygon or a "
                    "MultiPolygon; delete it, or classify it as Ignore*",
                )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise SlideError(
            "no_mask", f"mask {path} is not a GeoJSON of polygons in level-0 pixels ({type(error).__name__}: {error})"
        ) from error
    return polygons


def _is_ignored(feature: dict[str, Any]) -> bool:
    classification = (feature.get("properties") or {}).get("classification") or {}
    if isinstance(classification, str):
        classification = {"name": classification}
    names = [classification.get("name", ""), *(classification.get("names") or ())]
    return any(str(name).startswith(IGNORED) for name in names)


def _drawn(polygons: Polygons, size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """Pixels whose middle lies in a polygon and not in its holes."""
    mask = np.zeros((size[1], size[0]), bool)
    for rings in polygons:
        corners = [ring * scale for ring in rings]
        if any(not np.isfinite(ring).all() or np.abs(ring).max() > FARTHEST for ring in corners):
            raise SlideError("no_mask", "a mask's outline has corners that are no numbers or far outside the slide")
        left, top = np.clip(corners[0].min(axis=0), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(corners[0].max(axis=0)), 0, size).astype(int)
        piece = mask[top:bottom, left:right]
        piece |= _inside([ring - (left, top) for ring in corners], piece.shape)
    return mask


def _inside(rings: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Pixels bool (height, width) = `shape` with an odd number of crossings of the rings (n, 2) to the left of their middle."""
    (x, y), (next_x, next_y) = (
        np.concatenate(ends).T for ends in (rings, [np.roll(ring, -1, axis=0) for ring in rings])
    )
    # An edge crosses the middles of rows `first` to `last` - 1.
    first, last = (np.clip(np.ceil(end(y, next_y) - 0.5), 0, shape[0]).astype(int) for end in (np.minimum, np.maximum))
    counts = last - first
    if counts.sum() > MAX_CROSSINGS:
        raise SlideError("no_mask", f"a mask's outline crosses {counts.sum():,} pixels; simplify it")
    edge = np.repeat(np.arange(len(counts)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = x[edge] + (row + 0.5 - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
    crossed = np.zeros((shape[0], shape[1] + 1), np.uint8)
    np.bitwise_xor.at(crossed, (row, np.clip(np.ceil(at - 0.5), 0, shape[1]).astype(int)), 1)
    return np.bitwise_xor.accumulate(crossed, axis=1)[:, :-1].astype(bool)


def _pixels(path: Path, size: tuple[int, int], slide_size: tuple[int, int]) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise SlideError(
                        "no_mask", f"mask {path} has {image.width} x {image.height} pixels; make it smaller"
                    )
                x, y = slide_size[0] / image.width, slide_size[1] / image.height
                if abs(x - y) > (0.02 + 1 / image.width + 1 / image.height) * max(x, y):
                    raise SlideError(
                        "no_mask",
                        f"mask {path} has {image.width} x {image.height} pixels, another shape than the slide's "
                        f"{slide_size[0]} x {slide_size[1]}; draw it for the whole slide, as it lies in the file",
                    )
                grey = np.asarray(image.convert("LA") if image.has_transparency_data else image.convert("L"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise SlideError(
            "no_mask",
            f"mask {path} is not a PNG that can be read ({error}); export it as PNG, or as GeoJSON from QuPath",
        ) from error
    if grey.ndim == 3:  # what is transparent is not drawn
        grey = np.where(grey[..., 1] > 127, grey[..., 0], np.uint8(0))
    if 0 < grey.max() <= 127:
        raise SlideError(
            "no_mask",
            f"mask {path}: its brightest pixel is {grey.max()} of 255, so that none counts as tissue; write tissue as 255 (white)",
        )
    share = cv2.resize((grey > 127).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return share >= 0.5
