"""Thumbnail -> tissue by how much darker than this slide's own glass a pixel is, in its most absorbed colour.

Unlike one threshold on saturation or grey, this finds faint and fatty tissue beside dark tissue, works on underexposed slides
(the glass is measured, not assumed to be white) and on any stain.
"""

import cv2
import numpy as np

from mil.specs.slides import TissueSpec
from mil.tissue.registry import TISSUE

ASSUMED_GLASS = np.array([245.0, 245.0, 245.0])  # where a slide shows none: a crop from within the tissue
DARKEST_GLASS = 100
TINTED = 70  # largest spread between the colours of a glass pixel, of 255; a yellowed slide has 45
PINK = 15  # of 255: by as much is green below red and blue in stained tissue, but not in glass
FLAT = 12  # largest difference between neighbouring glass pixels
SAMPLE_PX = 512  # the glass is measured on a reduction to about this many pixels a side
NOISE_UM = 5.0  # standard deviation of the smoothing before the threshold
LEAST_DENSITY = 0.02  # uneven light and dirt on bare glass reach this


@TISSUE.register("contrast")
def contrast(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Pixels whose optical density over the glass exceeds a threshold in some colour.

    The threshold is `spec.min_density`; on a slide whose tissue is fainter than that, half of Otsu's (1979) on the densities, but
    above the glass's noise.
    """
    glass, noise = glass_of(thumbnail)
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), max(NOISE_UM / mpp, 0.6))
    threshold = max(min(spec.min_density, _otsu_density(smooth, glass) / 2), 4 * noise, LEAST_DENSITY)
    # A colour is too dark where it is below glass * 10**-threshold: the same test, without a logarithm a pixel.
    lightest = [float(np.clip(np.floor((colour + 1) * 10**-threshold - 1), 0, 255)) for colour in glass]
    return cv2.inRange(smooth, np.array(lightest), np.array([255.0] * 3)) == 0


def glass_of(thumbnail: np.ndarray) -> tuple[np.ndarray, float]:
    """(colour of the bare glass, its noise as optical density): the brightest common colour of flat areas, but for pure white.

    Pure white is what scanners and readers fill unscanned areas with. Glass may be tinted or dim; tissue is not flat, but for colloid,
    mucin and the like: where the colour is pink, and there is more pure white than of it, white is the glass.
    """
    small = _reduced(thumbnail)
    red, green, blue = cv2.split(small)
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    grey = (red.astype(np.uint16) + green + blue) / 3
    nearby = np.ones((3, 3), np.uint8)
    flat = (cv2.dilate(lowest, nearby) - cv2.erode(lowest, nearby)) <= FLAT
    glassy = flat & (lowest < 254) & (highest - lowest < TINTED) & (grey > DARKEST_GLASS)
    if glassy.sum() < 0.003 * glassy.size:
        return ASSUMED_GLASS, 0.0
    counts = np.convolve(np.bincount(grey[glassy].astype(int), minlength=256), np.ones(7) / 7, mode="same")
    common = np.flatnonzero(counts >= 0.2 * counts.max())
    peak = next(level for level in common[::-1] if counts[level] == counts[max(level - 7, 0) : level + 8].max())
    near = glassy & (np.abs(grey - peak) <= 6)
    glass = np.median(small[near], axis=0).astype(float)
    if min(glass[0], glass[2]) - glass[1] > PINK and near.sum() < (lowest >= 254).sum():
        return ASSUMED_GLASS, 0.0
    spread = 1.4826 * float(np.median(np.abs(grey[near] - peak)))
    return glass, float(-np.log10(max(1 - spread / glass.mean(), 0.5)))


def density(pixels: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Optical density over the glass in the most absorbed colour, float32 (h, w), at least 0."""
    table = np.stack([-np.log10((np.arange(256) + 1) / (colour + 1)) for colour in glass], axis=-1)
    red, green, blue = cv2.split(cv2.LUT(pixels, np.maximum(table, 0).astype(np.float32)[None]))
    return cv2.max(cv2.max(red, green), blue)


def _otsu_density(smooth: np.ndarray, glass: np.ndarray) -> float:
    densities = np.minimum(density(_reduced(smooth), glass), 1.0)
    level, _ = cv2.threshold((densities * 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return level / 255


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that about SAMPLE_PX remain a side."""
    step_y, step_x = (max(1, length // SAMPLE_PX) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[::step_y, ::step_x])
