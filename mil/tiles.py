"""A slide -> its tiles: corners of the squares of `size_px` at `mpp` that hold tissue, row by row."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from mil import __version__, hdf5
from mil.config import TileSpec
from mil.errors import CorruptFile, SlideError
from mil.files import check_name, replacing
from mil.progress import Reporter
from mil.slides.fingerprint import fingerprint
from mil.slides.slide import Slide, open_slide
from mil.tissue import find_tissue

STAGE_VERSION = 1  # raised when the same spec and slide would now give other tiles
THUMBNAIL_PX = 2048  # longest side of the stored thumbnail
COLUMNS = ("slide_id", "state", "reason", "num_tiles", "checksum")


@dataclass(frozen=True)
class Tiles:
    """The tiles of one slide: `coords` int64 (n, 2) level-0 corners row by row, `tissue` float32 (n,) share of each tile."""

    coords: np.ndarray
    tissue: np.ndarray
    size_level0: tuple[float, float]
    mask: np.ndarray
    thumbnail: np.ndarray
    thumbnail_mpp: float


def tile_slide(slide: Slide, spec: TileSpec) -> Tiles:
    """Find the tissue on the thumbnail and the tiles of the grid that hold at least `spec.min_tissue` of it."""
    thumbnail = slide.thumbnail(spec.tissue.mpp)
    mask = find_tissue(thumbnail, spec.tissue.mpp, spec.tissue)
    columns, rows = grid(slide, spec)
    side_x, side_y = (spec.size_px * px for px in slide.level0_px(spec.mpp))
    per_x, per_y = slide.level0_px(spec.tissue.mpp)
    share = _shares(mask, columns / per_x, rows / per_y, side_x / per_x, side_y / per_y)
    row, column = np.nonzero(share >= max(spec.min_tissue, np.finfo(np.float32).tiny))
    return Tiles(
        coords=np.stack([columns[column], rows[row]], axis=1).astype(np.int64),
        tissue=share[row, column],
        size_level0=(side_x, side_y),
        mask=mask,
        thumbnail=thumbnail,
        thumbnail_mpp=spec.tissue.mpp,
    )


def grid(slide: Slide, spec: TileSpec) -> tuple[np.ndarray, np.ndarray]:
    """Left edges and top edges of the grid in level-0 pixels. Each is rounded on its own, so nothing drifts."""
    stride = spec.stride_px or spec.size_px
    per_x, per_y = slide.level0_px(spec.mpp)
    return (
        _edges(slide.width, stride * per_x, spec.size_px * per_x),
        _edges(slide.height, stride * per_y, spec.size_px * per_y),
    )


def tile_shard(
    slides: pd.DataFrame, spec: TileSpec, folder: Path, thumbnails: Path, reporter: Reporter
) -> pd.DataFrame:
    """Tile the slides of a shard (rows of `slides.csv`) into `folder/{slide}.h5`; the manifest of `COLUMNS`.

    A slide whose file has the same recipe and an intact checksum is left as it is. A slide that fails is a row with state and reason.
    """
    rows = []
    with reporter.steps("tile", len(slides), "slides") as steps:
        for slide in slides.to_dict("records"):
            row = _tile_one(slide, spec, Path(folder), Path(thumbnails))
            steps.done(tiles=row["num_tiles"])
            if row["state"] != "ok":
                reporter.note(f"slide {row['slide_id']}: {row['state']}: {row['reason']}")
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def recipe(spec: TileSpec, fingerprint: str, mpp: float | None) -> str:
    """What a tiles file is made from, as one hash: spec, version of this stage, the slide's bytes, the sheet's mpp."""
    made_from = {"stage": "tiles", "version": STAGE_VERSION, "spec": spec.to_json(), "slide": fingerprint, "mpp": mpp}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _tile_one(row: Mapping[str, Any], spec: TileSpec, folder: Path, thumbnails: Path) -> dict[str, Any]:
    slide_id = check_name("slide_id", str(row["slide_id"]), "tile")
    done = {"slide_id": slide_id, "state": row.get("state", "ok"), "reason": row.get("reason", "")}
    if done["state"] != "ok":
        return {**done, "num_tiles": 0, "checksum": ""}
    path, mpp = Path(row["path"]), override_of(row)
    try:
        wanted = recipe(spec, row.get("fingerprint") or fingerprint(path), mpp)
        target, picture = folder / f"{slide_id}.h5", thumbnails / f"{slide_id}.jpg"
        checksum = _up_to_date(target, wanted) if picture.is_file() else None
        if checksum is None:
            with open_slide(path, mpp) as slide:
                tiles = tile_slide(slide, spec)
                _write(target, slide_id, slide, tiles, spec, wanted, row)
                _write_thumbnail(picture, slide, tiles)
            checksum = hdf5.verify(target)
        num_tiles = int(hdf5.attributes(target)["num_tiles"])
    except SlideError as error:
        return {**done, "state": error.state, "reason": str(error), "num_tiles": 0, "checksum": ""}
    if not num_tiles:
        reason = f"no tile of the slide holds {spec.min_tissue:.0%} tissue; see its thumbnail"
        return {**done, "state": "no_tissue", "reason": reason, "num_tiles": 0, "checksum": checksum}
    return {**done, "reason": "", "num_tiles": num_tiles, "checksum": checksum}


def override_of(row: Mapping[str, Any]) -> float | None:
    """The mpp to open a row of `slides.csv` with: the sheet's where it was the sheet's, else the header's own (None)."""
    return float(row["mpp"]) if row.get("mpp_source") == "sheet" else None


def _up_to_date(target: Path, wanted: str) -> str | None:
    """The checksum of a finished file of the same recipe; None where there is none."""
    if not target.is_file():
        return None
    try:
        return hdf5.verify(target) if hdf5.attributes(target).get("recipe") == wanted else None
    except CorruptFile:
        return None


def _write(
    target: Path, slide_id: str, slide: Slide, tiles: Tiles, spec: TileSpec, recipe: str, row: Mapping[str, Any]
) -> None:
    with hdf5.writing(target) as file:
        file.append("coords", tiles.coords)
        file.append("tissue", tiles.tissue)
        file.annotate(
            {
                "stage": "tiles",
                "slide_id": slide_id,
                "spec": spec.model_dump(mode="json"),
                "mpp": slide.mpp,
                "mpp_source": slide.mpp_source,
                "fingerprint": row.get("fingerprint") or fingerprint(slide.path),
                "width": slide.width,
                "height": slide.height,
                "num_tiles": len(tiles.coords),
                "mil_version": __version__,
                "recipe": recipe,
            }
        )
        file.annotate(trident_attributes(slide_id, slide, spec), on="coords")


def trident_attributes(slide_id: str, slide: Slide, spec: TileSpec) -> dict[str, Any]:
    """The attributes that TRIDENT (mahmoodlab/TRIDENT) puts on `coords`; magnification is 10 / mpp, rounded."""
    per_x, per_y = slide.level0_px(spec.mpp)
    magnification = 10 * (per_x + per_y) / 2 / spec.mpp
    return {
        "patch_size": spec.size_px,
        "patch_size_level0": round(spec.size_px * (per_x + per_y) / 2),
        "level0_magnification": max(round(magnification), 1),
        "target_magnification": max(round(10 / spec.mpp), 1),
        "overlap": spec.size_px - (spec.stride_px or spec.size_px),
        "name": slide_id,
        "level0_width": slide.width,
        "level0_height": slide.height,
    }


def _write_thumbnail(path: Path, slide: Slide, tiles: Tiles) -> None:
    picture = draw_thumbnail(slide, tiles)
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not encoded:
        raise SlideError("unreadable", f"{slide.path.name}: its thumbnail cannot be encoded as JPEG")
    with replacing(path) as partial:
        partial.write_bytes(data.tobytes())


def draw_thumbnail(slide: Slide, tiles: Tiles) -> np.ndarray:
    """The thumbnail, at most 2048 pixels a side, with the tissue outlined in green and the tiles in blue."""
    height, width = tiles.mask.shape
    shrink = max(1.0, max(height, width) / THUMBNAIL_PX)
    size = max(round(width / shrink), 1), max(round(height / shrink), 1)
    picture = cv2.resize(tiles.thumbnail, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(tiles.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    per_x, per_y = (px * shrink for px in slide.level0_px(tiles.thumbnail_mpp))
    side_x, side_y = tiles.size_level0
    for x, y in tiles.coords:
        corner = round(x / per_x), round(y / per_y)
        opposite = round((x + side_x) / per_x), round((y + side_y) / per_y)
        cv2.rectangle(picture, corner, opposite, (60, 90, 200), 1)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, (0, 160, 60), 1)
    return picture


def _edges(length: int, stride: float, side: float) -> np.ndarray:
    """Starts of the squares that fit into `length` (to half a pixel)."""
    count = max(math.floor((length + 0.5 - side) / stride) + 1, 0)
    return np.rint(np.arange(count) * stride).astype(np.int64)


def _shares(mask: np.ndarray, left: np.ndarray, top: np.ndarray, side_x: float, side_y: float) -> np.ndarray:
    """Share of `mask` in each square, float32 (rows, columns); squares in mask pixels, fractions counted as such."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    down = _between(total, top + side_y, axis=0) - _between(total, top, axis=0)
    inside = _between(down, left + side_x, axis=1) - _between(down, left, axis=1)
    return (inside / (side_x * side_y)).astype(np.float32)


def _between(total: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Cumulative sums `total` at fractional positions `at` along `axis`."""
    at = np.clip(at, 0, total.shape[axis] - 1)
    low = np.minimum(at.astype(np.int64), total.shape[axis] - 2)
    weight = np.expand_dims(at - low, 1 - axis)
    return np.take(total, low, axis) * (1 - weight) + np.take(total, low + 1, axis) * weight
