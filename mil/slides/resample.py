"""Level pixels -> output pixels at another scale, exact in ratio and offset whatever the fractions."""

import cv2
import numpy as np

OFFSET_TOLERANCE = 1 / 128  # a shift by less, in source pixels, is left out


def extents(starts: np.ndarray, scale: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First source pixel and number of source pixels that `count` outputs of `scale` source pixels from each start need."""
    margin = 1 if scale < 1 else 0  # interpolation looks at both neighbours
    first = np.floor(starts + OFFSET_TOLERANCE).astype(np.int64) - margin
    last = np.ceil(starts + count * scale - OFFSET_TOLERANCE).astype(np.int64) + margin
    return first, np.maximum(last - first, 1)


def resample(
    pixels: np.ndarray,
    offset: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> np.ndarray:
    """Source (rows, columns, 3) -> output uint8 (height, width, 3), `size` = (width, height).

    Output pixel (i, j) covers the source box from `offset + (i, j) * scale`, (x, y) in source pixels: its mean with fractional
    coverage where the output is coarser, linear interpolation at its middle where it is finer. Where nothing is to be
    done, or the scale is above 1 by less than half a pixel in the whole, the source comes back untouched (as OpenCV does it).
    """
    (offset_x, offset_y), (scale_x, scale_y), (width, height) = offset, scale, size
    moved = abs(offset_x) > OFFSET_TOLERANCE or abs(offset_y) > OFFSET_TOLERANCE
    if min(scale_x, scale_y) < 1:
        middle = np.array(
            [[scale_x, 0, offset_x + scale_x / 2 - 0.5], [0, scale_y, offset_y + scale_y / 2 - 0.5]], np.float64
        )
        return _interpolated(pixels, middle, size)
    if moved:
        # A linear shift followed by the mean over a whole number of pixels is that mean with fractional coverage.
        rows, columns = pixels.shape[:2]
        shift = np.array([[1, 0, offset_x], [0, 1, offset_y]], np.float64)
        pixels = _interpolated(pixels, shift, (columns, rows))
    if scale_x == scale_y == 1:
        return pixels[:height, :width]
    # Given the factors instead of a size, OpenCV keeps them as they are; given a size it would round the ratio.
    return cv2.resize(pixels, None, fx=1 / scale_x, fy=1 / scale_y, interpolation=cv2.INTER_AREA)[:height, :width]


def _interpolated(pixels: np.ndarray, source_of: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.warpAffine(
        pixels, source_of, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
