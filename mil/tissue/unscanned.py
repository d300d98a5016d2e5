"""Thumbnail -> where nothing was scanned: black that converters and scanners leave around and between scanned regions."""

import cv2
import numpy as np

BLACKEST = 10  # of 255: black fill that went through JPEG; ink and pigment are brighter
LEAST_UM2 = 20_000.0  # smaller patches are pigment or dust
BORDER_PX = 2  # thumbnail pixels in which black is mixed with what lies beside it


def unscanned(thumbnail: np.ndarray, mpp: float) -> np.ndarray:
    """Black areas of a thumbnail uint8 (h, w, 3) that the scanner never scanned, and their borders, bool (h, w)."""
    black = cv2.inRange(thumbnail, (0, 0, 0), (BLACKEST,) * 3)
    if not black.any():
        return black.astype(bool)
    large = large_pieces(black, LEAST_UM2 / mpp**2).astype(np.uint8)
    return cv2.dilate(large, np.ones((2 * BORDER_PX + 1,) * 2, np.uint8)).astype(bool)


def without_unscanned(thumbnail: np.ndarray, black: np.ndarray) -> np.ndarray:
    """The thumbnail with white, which scanners fill in too, in place of the black."""
    return np.where(black[..., None], np.uint8(255), thumbnail) if black.any() else thumbnail


def large_pieces(mask: np.ndarray, area_px: float) -> np.ndarray:
    """The connected pieces of a mask that have at least this area, bool (h, w)."""
    if np.count_nonzero(mask) < area_px:
        return np.zeros(mask.shape, bool)
    number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    of_mask = labels[mask.astype(bool)].astype(np.intp, copy=False)
    large = np.zeros(mask.shape, bool)
    large[mask.astype(bool)] = (np.bincount(of_mask, minlength=number) >= area_px)[of_mask]
    return large
