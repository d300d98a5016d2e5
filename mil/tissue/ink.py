"""Thumbnail -> where pens have written: red, green, blue, purple and black ink, from 60 % opacity, on glass and on tissue.

Opaque ink has colours that stains do not have. Translucent ink has the colours of stains but less structure. Ink that lies flat on
glass is followed onto tissue (`traced`). Measured is the relative contrast: the standard deviation of the density over its mean, in a
square of 5 pixels of 8 microns. It is below 0.05 for ink on glass and above 0.056 for 99.9 % of real tissue. Its mean over 120 microns is 0.04 to 0.14 for ink of 60 % on tissue and above 0.116 for
99 % of real tissue.
"""

import cv2
import numpy as np

from mil.tissue.traced import traced
from mil.tissue.unscanned import large_pieces

WHITE = 245.0
SPECK_UM2 = 20_000.0  # smaller patches of ink's colour are tissue: pigment, a vessel
SMOOTH = 0.05  # largest relative contrast of smooth ink at the thumbnail's resolution
SMOOTH_PX = 5  # side of the square that the contrast is measured in
DULL = 0.11  # largest mean of the relative contrast of ink on tissue
DULL_PX = 15
EDGE_PX = 7  # side of the square that must be dark around a pixel for it to count as inner
BESIDE_PX = 31  # side of the square (of every second pixel) in which it is judged whether ink lies on glass
STROKE_PX = 22  # side of the square in which a thin stroke has bare glass
MOST_TISSUE = 0.2  # share of what is beside ink on glass that may be dark
STEP = 2  # every second pixel is judged: a pen's stroke is some hundred microns wide
LEAST_DENSITY = 0.12  # paler areas are glass, mucin, fat
FLATTEST = 0.03  # largest relative contrast of ink that is followed from glass onto tissue
FLAT = 0.4  # of the slide's usual contrast: no piece of SPECK_UM2 of 83 patients' tissue was as flat
PINK = 158, 172  # hue (in 2 degrees) of colloid and mucin, which are as flat
NEUTRAL = 30  # largest difference of the colours of black ink on glass, of 255
LAST_HUES = 25, 92, 125, 160  # of red, green, blue and purple; red again beyond
INKS = ("red", "green", "blue", "purple", "black")


def ink(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> np.ndarray:
    """Pixels of each ink of `INKS` on a thumbnail uint8 (h, w, 3), bool (5, h, w); colours are judged with the glass made white."""
    found, _, _ = _on_every_second(thumbnail, glass, mpp)
    return np.stack([_enlarged(mask, thumbnail) for mask in found])


def ink_on_glass(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> np.ndarray:
    """Ink that is smooth or has bare glass beside it, and its edges, bool (h, w): nothing of tissue shows there."""
    found, smooth, dense = _on_every_second(thumbnail, glass, mpp)
    inked = np.asarray(found.any(axis=0), np.uint8)
    free = (cv2.dilate(inked, np.ones((5, 5), np.uint8)) == 0).astype(np.float32)
    tissue, beside = (cv2.blur(values, (BESIDE_PX, BESIDE_PX)) for values in (free * dense, free))
    on_glass = (inked > 0) & (smooth | (tissue < MOST_TISSUE * beside))
    if not on_glass.any():
        return np.zeros(thumbnail.shape[:2], bool)
    large = large_pieces(on_glass, SPECK_UM2 / (STEP * mpp) ** 2)
    reach = SMOOTH_PX // 2 + STEP  # pixels at ink's edges are no longer smooth
    grown = cv2.dilate(_enlarged(large, thumbnail).astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))
    return grown.astype(bool)


def _on_every_second(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every second pixel of every second row: its inks, bool (5, h / 2, w / 2), whether it lies in a smooth area, and whether in a dark one."""
    hue, saturation, value, neutral = _colours(cv2.medianBlur(thumbnail, 3)[::STEP, ::STEP], glass)
    opaque = [
        ((hue <= 6) | (hue >= 175)) & (saturation >= 190) & (value >= 110),
        (hue >= 35) & (hue <= 92) & (saturation >= 60) & (value >= 30),
        (hue >= 93) & (hue <= 121) & (saturation >= 140) & (value >= 40),
        np.zeros(hue.shape, bool),
        (value <= 75) & (neutral <= 28),
    ]
    # Ink of some opacity over glass is the lighter, the less saturated: a line in value and saturation bounds it.
    faded = np.maximum(80, 70 + 1.5 * np.maximum(190 - value, 0))
    no_stain = [  # colours that no stain of H&E or DAB has, in smooth areas
        np.zeros(hue.shape, bool),
        (hue >= 35) & (hue <= 92) & (saturation >= 40),
        (hue >= 104) & (hue <= 115) & (saturation >= 70) & ((value >= 145) | (saturation >= 130)),
        np.zeros(hue.shape, bool),
        ((value <= 150) & (neutral <= 24)) | ((value <= 115) & (neutral <= 45)),
    ]
    like_stain = [  # colours that tissue may have, in areas that are smooth beside this slide's tissue
        ((hue <= 8) | (hue >= 175)) & (saturation >= 105) & (value >= 150),
        np.zeros(hue.shape, bool),
        ((hue >= 104) & (hue <= 122) & (saturation >= 70)) | ((hue <= 126) & (saturation >= 125) & (value >= 150)),
        (hue >= 136) & (hue <= 157) & (saturation >= faded),
        np.zeros(hue.shape, bool),
    ]
    like_stain[2] &= hue > 115
    contrast, dense, usual = _contrast(thumbnail, glass)
    around = cv2.blur(np.minimum(contrast, 1), (DULL_PX // STEP, DULL_PX // STEP))
    smooth = dense & ((contrast <= SMOOTH) | (around <= DULL))
    # Textured red is blood and textured black pigment, but beside bare glass: a thin stroke has no smooth middle.
    beside_bare = cv2.dilate((~dense).astype(np.uint8), np.ones((STROKE_PX // STEP,) * 2, np.uint8)) > 0
    opaque[0] &= smooth | beside_bare
    opaque[4] &= smooth | beside_bare
    smoother = dense & ((contrast < min(SMOOTH, 0.3 * usual)) | (around < min(DULL, 0.5 * usual)))
    found = [
        one | (other & smooth) | (third & smoother)
        for one, other, third in zip(opaque, no_stain, like_stain, strict=True)
    ]
    speck_px = SPECK_UM2 / (STEP * mpp) ** 2
    flat = dense & (contrast < min(FLATTEST, FLAT * usual)) & ~((hue >= PINK[0]) & (hue <= PINK[1]))
    for colour, mask in traced(cv2.blur(thumbnail, (3, 3))[::STEP, ::STEP], glass, flat, dense, speck_px):
        found[_name(colour, glass)] |= mask
    found = [large_pieces(mask, speck_px) for mask in found]
    return np.stack(found), dense & (contrast <= SMOOTH), dense


def _name(colour: np.ndarray, glass: np.ndarray) -> int:
    """Number in `INKS` of an ink of this colour on glass."""
    hue, _, _, neutral = (int(value[0, 0]) for value in _colours(np.rint(colour).astype(np.uint8)[None, None], glass))
    if neutral <= NEUTRAL:
        return INKS.index("black")
    return int(np.searchsorted(LAST_HUES, hue)) % len(LAST_HUES)


def _enlarged(mask: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    size = thumbnail.shape[1], thumbnail.shape[0]
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _colours(pixels: np.ndarray, glass: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hue (in 2 degrees), saturation, value, and the difference of the largest and the smallest colour; int16 (h, w)."""
    balance = np.stack([np.clip(np.arange(256) * WHITE / colour, 0, 255) for colour in glass], axis=-1)
    pixels = cv2.LUT(pixels, np.rint(balance).astype(np.uint8)[None])
    hue, saturation, value = (
        channel.astype(np.int16) for channel in cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    )
    return hue, saturation, value, value - pixels.min(axis=2)


def _contrast(thumbnail: np.ndarray, glass: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Relative contrast of the density around every second pixel, float32 (h / 2, w / 2), which of them are clearly darker than glass, and
    the contrast that three quarters of these, but for edges, do not exceed: that of the slide's tissue."""
    red, green, blue = cv2.split(thumbnail)
    darkest = cv2.min(cv2.min(red, green), blue)
    table = np.maximum(-np.log10((np.arange(256) + 1) / (glass.min() + 1)), 0).astype(np.float32)
    dense = cv2.LUT(darkest, table[None])
    square = (SMOOTH_PX, SMOOTH_PX)
    mean, of_squares = (cv2.blur(values, square)[::STEP, ::STEP] for values in (dense, dense * dense))
    contrast = np.sqrt(np.maximum(of_squares - mean * mean, 0)) / np.maximum(mean, np.float32(1e-3))
    dark = mean >= LEAST_DENSITY
    inner = cv2.erode(dark.astype(np.uint8), np.ones((EDGE_PX,) * 2, np.uint8)) > 0
    return contrast, dark, float(np.percentile(contrast[inner][::4], 75)) if inner.any() else 0.0
