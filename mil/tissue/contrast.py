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
LIGHTER = 1.1  # of its brightness: nothing that was scanned is lighter than glass by more, but for uneven light
FADING = 0.1  # share of the pixels at tissue's edge on pure white that are clearly lighter than it; beside fill none is
WHITE = 250  # of 255: brightness of pure white after JPEG
LEAST_WHITE = 0.01  # share of the picture
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

    Pure white is what scanners and readers fill unscanned areas with. Glass may be tinted or dim. Tissue may be flat too (colloid, mucin,
    smooth stains): it is `ASSUMED_GLASS` where the colour is pink (very much, if there is more of it than of pure white), where it fades into
    pure white, as fill does not, or where more of the picture is lighter.
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
    white = lowest >= 254
    is_pink = min(glass[0], glass[2]) - glass[1] > (PINK if near.sum() < white.sum() else 2 * PINK)
    lighter = np.count_nonzero(~white & (grey > LIGHTER * peak))
    if is_pink or lighter > near.sum() or (white.mean() > LEAST_WHITE and _fades(thumbnail, glass)):
        return ASSUMED_GLASS, 0.0
    spread = 1.4826 * float(np.median(np.abs(grey[near] - peak)))
    return glass, float(-np.log10(max(1 - spread / glass.mean(), 0.5)))


def _fades(thumbnail: np.ndarray, glass: np.ndarray) -> bool:
    """Whether pixels at 2 and 3 from white are lighter than `glass`, as at an edge of tissue; fill ends within a pixel.

    Judged by brightness: JPEG stores colours at half the resolution, so that they reach over an edge of fill.
    """
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)
    inner, outer = (cv2.dilate((grey >= WHITE).astype(np.uint8), np.ones((side, side), np.uint8)) for side in (3, 7))
    beside = grey[outer > inner]
    level = float(glass @ (0.299, 0.587, 0.114))
    return len(beside) > 0 and float((beside > level + max((255 - level) / 4, 8)).mean()) > FADING


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
