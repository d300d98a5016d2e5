"""Thumbnail -> where the tissue is, as a mask of the thumbnail's size.

A method is a function from a thumbnail uint8 (h, w, 3), its microns a pixel and the spec to a mask bool (h, w), entered in `TISSUE`.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from mil.errors import SlideError
from mil.specs.slides import TissueSpec
from mil.tissue import contrast, otsu  # noqa: F401  importing them fills TISSUE
from mil.tissue.contrast import glass_of
from mil.tissue.ink import ink_on_glass
from mil.tissue.registry import TISSUE
from mil.tissue.unscanned import unscanned, without_unscanned


def find_tissue(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Thumbnail uint8 (h, w, 3) at `mpp` -> mask bool (h, w): the method's, grown by the margin, specks and holes removed.

    Black areas that were never scanned are no tissue for any method, nor with `spec.ink_is_glass` is pen ink on bare glass.
    """
    not_tissue = unscanned(thumbnail, mpp)
    thumbnail = without_unscanned(thumbnail, not_tissue)
    tissue = TISSUE[spec.method](thumbnail, mpp, spec)
    if spec.ink_is_glass:
        not_tissue |= ink_on_glass(thumbnail, glass_of(thumbnail)[0], mpp)
    return tidied(tissue & ~not_tissue, mpp, spec) & ~not_tissue


def tidied(mask: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """The mask without specks, grown by `margin_um`, its small holes filled; outside the image counts as glass."""
    pixels = mask.astype(np.uint8)
    for outline, area, is_hole in _pieces(pixels):
        if not is_hole and area < spec.min_area_um2 / mpp**2:
            cv2.drawContours(pixels, [outline], 0, 0, cv2.FILLED)
    radius = round(spec.margin_um / mpp)
    if radius:
        round_piece = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        pixels = cv2.dilate(pixels, round_piece)
    for outline, area, is_hole in _pieces(pixels):
        if is_hole and area <= spec.fill_holes_um2 / mpp**2:
            cv2.drawContours(pixels, [outline], 0, 1, cv2.FILLED)
    return pixels.astype(bool)


@TISSUE.register("mask")
def mask(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """No method at all: the mask that somebody brought (`spec.masks`), without which there is no tissue to be found."""
    raise SlideError(
        "no_mask", "tissue method 'mask' finds nothing by itself; bring the slide's mask (tiles.tissue.masks)"
    )


def _pieces(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, float, bool]]:
    """(outline, area in pixels within it, whether it is a hole) of the connected pieces of a mask and of their holes."""
    outlines, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for index, outline in enumerate(outlines):
        is_hole = tree[0][index][3] >= 0
        # Outlines run through the middles of a piece's outermost pixels, of a hole's surrounding ones: Pick's theorem.
        border = len(outline) / 2
        yield outline, cv2.contourArea(outline) + (1 - border if is_hole else 1 + border), is_hole
