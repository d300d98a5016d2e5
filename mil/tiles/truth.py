"""A slide's truth (a table of squares in microns, or PNG masks) -> the share of each tile that is positive."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mil.config import TruthSpec
from mil.errors import MilError
from mil.files import require_file
from mil.tables import read_text_table, require_columns

OUTLINES = {".xml", ".geojson", ".json"}  # annotations of ASAP, ImageScope and QuPath


@dataclass(frozen=True)
class Truth:
    """Where truth is to be found; a table is read once, masks when asked for."""

    spec: TruthSpec
    folder: Path
    squares: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each slide: x_um, y_um, value; (squares, 3)."""

    def share(
        self, slide_id: str, coords: np.ndarray, side_um: float, mpp: float, slide_um: tuple[float, float]
    ) -> np.ndarray | None:
        """Share of each tile's area that is positive, (tiles,) in 0-1; none where this slide's truth is not known.

        `coords` are level-0 top-left corners (tiles, 2), `side_um` the tile's side, `mpp` the slide's level 0, `slide_um` its width and
        height; a mask that is larger or smaller by a tenth is of another slide or scale.
        """
        corners = coords.astype(np.float64) * mpp
        if self.spec.table is not None:
            squares = self.squares.get(slide_id)
            return (
                None
                if squares is None
                else _share_of_squares(corners, side_um, squares, float(self.spec.square_um or 0))
            )
        mask, mask_mpp = self.mask(slide_id), float(self.spec.mask_mpp or 0)
        if mask is None:
            return None
        covers = mask.shape[1] * mask_mpp, mask.shape[0] * mask_mpp
        if any(
            abs(of_mask - of_slide) > 0.1 * of_slide + mask_mpp
            for of_mask, of_slide in zip(covers, slide_um, strict=True)
        ):
            raise MilError(
                f"the truth mask of slide '{slide_id}' covers {covers[0]:.0f} x {covers[1]:.0f} microns at truth.mask_mpp {mask_mpp:g}, "
                f"the slide {slide_um[0]:.0f} x {slide_um[1]:.0f}; correct truth.mask_mpp, or draw the mask for the whole slide"
            )
        return _share_of_mask(corners, side_um, mask, mask_mpp)

    def mask(self, slide_id: str) -> np.ndarray | None:
        """The slide's mask as booleans (h, w); none where truth is a table or the slide has no mask."""
        if self.spec.masks is None:
            return None
        path = find(self.spec.masks.replace("{slide_id}", slide_id), self.folder)
        if path is None:
            return None
        mask = cv2.imread(str(require_file(path, "truth mask")), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        if mask is None or mask.dtype != np.uint8:
            way_out = "write it again or remove it"
            if path.suffix.lower() in OUTLINES:
                way_out = "draw its outlines into one (cv2.fillPoly with 255, corners * mpp / truth.mask_mpp; QuPath: LabeledImageServer)"
            raise MilError(f"truth mask {path} cannot be read as an 8-bit PNG; {way_out}")
        if 0 < mask.max() <= 127:
            raise MilError(
                f"truth mask {path}: its brightest pixel is {mask.max()} of 255, so that none is positive; write what is positive as 255"
            )
        return mask > 127


def load_truth(spec: TruthSpec, folder: Path) -> Truth:
    """The truth that `spec` names; its paths are taken as given, or from `folder` (the slide sheet's)."""
    if spec.table is None:
        return Truth(spec, folder)
    path = find(spec.table, folder)
    if path is None:
        raise MilError(f"truth table {spec.table} does not exist, neither here nor in {folder}; see truth.table")
    table = read_text_table(path, "truth table")
    require_columns(table, ("slide_id", "x_um", "y_um", spec.column), f"truth table {path}")
    numbers = table[["x_um", "y_um", spec.column]].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any(axis=None):
        line = numbers.index[numbers.isna().any(axis=1)][0]
        raise MilError(f"truth table {path}, line {line}: x_um, y_um and {spec.column} must be numbers")
    squares = {str(slide): rows.to_numpy() for slide, rows in numbers.groupby(table["slide_id"])}
    return Truth(spec, folder, squares)


def find(path: str, folder: Path) -> Path | None:
    """`path` as given or under `folder`, whichever exists first."""
    return next((candidate for candidate in (Path(path), folder / path) if candidate.exists()), None)


def _share_of_squares(corners: np.ndarray, side_um: float, squares: np.ndarray, square_um: float) -> np.ndarray:
    share = np.zeros(len(corners))
    for x, y, value in squares[squares[:, 2] != 0]:
        wide = np.minimum(corners[:, 0] + side_um, x + square_um) - np.maximum(corners[:, 0], x)
        high = np.minimum(corners[:, 1] + side_um, y + square_um) - np.maximum(corners[:, 1], y)
        share += value * np.clip(wide, 0, None) * np.clip(high, 0, None)
    return np.clip(share / side_um**2, 0, 1)


def _share_of_mask(corners: np.ndarray, side_um: float, mask: np.ndarray, mask_mpp: float) -> np.ndarray:
    """Mean of the mask under each tile, whole mask pixels; outside the mask is negative."""
    area = cv2.integral(mask.astype(np.uint8))
    side = max(round(side_um / mask_mpp), 1)
    left, top = np.rint(corners / mask_mpp).astype(np.int64).T
    x0, x1 = np.clip(left, 0, mask.shape[1]), np.clip(left + side, 0, mask.shape[1])
    y0, y1 = np.clip(top, 0, mask.shape[0]), np.clip(top + side, 0, mask.shape[0])
    return (area[y1, x1] - area[y0, x1] - area[y1, x0] + area[y0, x0]) / side**2
