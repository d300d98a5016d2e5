"""Thumbnail -> where the tissue is, as a mask of the thumbnail's size."""

from collections.abc import Callable

import cv2
import numpy as np

from mil.config import TissueSpec
from mil.registry import Registry

TissueMethod = Callable[[np.ndarray, float, TissueSpec], np.ndarray]

TISSUE: Registry[TissueMethod] = Registry("tissue method")


def find_tissue(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Thumbnail uint8 (h, w, 3) at `mpp` -> mask bool (h, w): the method's, without specks, small holes filled."""
    mask = TISSUE[spec.method](thumbnail, mpp, spec)
    mask = _without_small(mask, spec.min_area_um2 / mpp**2)
    return ~_without_small(~mask, spec.fill_holes_um2 / mpp**2)


@TISSUE.register("otsu_saturation")
def otsu_saturation(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Pixels more saturated than Otsu's threshold (Otsu 1979) on the median-filtered saturation."""
    saturation = cv2.medianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)[..., 1], 7)
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # Otsu splits even a bare slide in two; glass is never more saturated than this (8 of 255).
    return saturation > max(threshold, 8)


@TISSUE.register("otsu_grey")
def otsu_grey(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Pixels darker than Otsu's threshold (Otsu 1979) on the median-filtered grey image."""
    grey = cv2.medianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), 7)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return grey < min(threshold, 235)


def _without_small(mask: np.ndarray, area_px: float) -> np.ndarray:
    """The mask without connected parts (8 neighbours) smaller than `area_px`."""
    if area_px <= 1:
        return mask
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = statistics[:, cv2.CC_STAT_AREA] >= area_px
    keep[0] = False
    return keep[labels.astype(np.intp)]
