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
STRIP_PX = 128  # rows that are worked on at a time; even
STEP = 2  # every second pixel is judged: a pen's stroke is some hundred microns wide
LEAST_DENSITY = 0.12  # paler areas are glass, mucin, fat
FLATTEST = 0.03  # largest relative contrast of ink that is followed from glass onto tissue
FLAT = 0.4  # of the slide's usual contrast: no piece of SPECK_UM2 of 83 patients' tissue was as flat
PINK = 158, 172  # hue (in 2 degrees) of colloid and mucin, which are as flat
GREY = 20  # largest difference of the colours at which hue says nothing, of 255
NEUTRAL = 30  # largest difference of the colours of black ink on glass, of 255
LAST_HUES = 25, 92, 125, 160  # of red, green, blue and purple; red again beyond
INKS = ("red", "green", "blue", "purple", "black")
HUES = 180
COLOURS = (
    # ink, where it counts ("smooth": where the thumbnail is; "smoother": where it is beside this slide's tissue), then its bounds:
    # first and last hue in 2 degrees, least saturation, least and most value, largest difference of the colours
    ("red", "smooth or beside glass", 175, 6, 190, 110, 255, 255),  # opaque ink
    ("green", "anywhere", 35, 92, 60, 30, 255, 255),
    ("blue", "anywhere", 93, 121, 140, 40, 255, 255),
    ("black", "smooth or beside glass", 0, 179, 0, 0, 75, 28),
    ("green", "smooth", 35, 92, 40, 0, 255, 255),  # colours that no stain of H&E or DAB has
    ("blue", "smooth", 104, 115, 70, 145, 255, 255),
    ("blue", "smooth", 104, 115, 130, 0, 255, 255),
    ("black", "smooth", 0, 179, 0, 0, 150, 24),
    ("black", "smooth", 0, 179, 0, 0, 115, 45),
    ("red", "smoother", 175, 8, 105, 150, 255, 255),  # colours that tissue may have
    ("blue", "smoother", 116, 122, 70, 0, 255, 255),
    ("blue", "smoother", 116, 126, 125, 150, 255, 255),
    ("purple", "smoother", 136, 157, 80, 0, 255, 255),
)


def ink(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> np.ndarray:
    """Pixels of each ink of `INKS` on a thumbnail uint8 (h, w, 3), bool (5, h, w); colours are judged with the glass made white."""
    inks, _, _ = _on_every_second(thumbnail, glass, mpp)
    return np.stack([_enlarged(mask, thumbnail) for mask in inks])


def ink_on_glass(thumbnail: np.ndarray, glass: np.ndarray, mpp: float) -> np.ndarray:
    """Ink that is smooth or has bare glass beside it, and its edges, bool (h, w): nothing of tissue shows there."""
    inks, smooth, dense = _on_every_second(thumbnail, glass, mpp)
    if not inks.any():
        return np.zeros(thumbnail.shape[:2], bool)
    inked = np.asarray(inks.any(axis=0), np.uint8)
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
    contrast, dense, usual = _contrast(thumbnail, glass)
    around = cv2.blur(np.minimum(contrast, 1), (DULL_PX // STEP, DULL_PX // STEP))
    smooth = dense & ((contrast <= SMOOTH) | (around <= DULL))
    smoother = dense & ((contrast < min(SMOOTH, 0.3 * usual)) | (around < min(DULL, 0.5 * usual)))
    # Textured red is blood and textured black pigment, but beside bare glass: a thin stroke has no smooth middle.
    beside_bare = cv2.dilate((~dense).astype(np.uint8), np.ones((STROKE_PX // STEP,) * 2, np.uint8)) > 0
    hsv, neutral = _colours(_every_second(cv2.medianBlur(thumbnail, 3)), glass)
    inks = _by_colour(
        hsv, neutral, {"smooth": smooth, "smoother": smoother, "smooth or beside glass": smooth | beside_bare}
    )
    speck_px = SPECK_UM2 / (STEP * mpp) ** 2
    is_pink = (cv2.inRange(hsv[..., 0], *PINK) > 0) & (neutral > GREY)
    flat = dense & (contrast < min(FLATTEST, FLAT * usual)) & ~is_pink
    for colour, mask in traced(lambda: _every_second(cv2.blur(thumbnail, (3, 3))), glass, flat, dense, speck_px):
        inks[_name(colour, glass)] |= mask
    return np.stack([large_pieces(mask, speck_px) for mask in inks]), dense & (contrast <= SMOOTH), dense


def _by_colour(hsv: np.ndarray, neutral: np.ndarray, where: dict[str, np.ndarray]) -> np.ndarray:
    """Pixels of each ink, bool (5, h, w): in the bounds of one of its `COLOURS`, and there `where` that one counts."""
    levels = np.arange(256)[:, None]
    first, last, saturation, value, most_value, most_neutral = np.array([colour[2:] for colour in COLOURS]).T
    inside = (
        (levels - first) % HUES <= (last - first) % HUES,
        levels >= saturation,
        (levels >= value) & (levels <= most_value),
        levels <= most_neutral,
    )
    bits = 1 << np.arange(len(COLOURS))
    within: np.ndarray = np.full(neutral.shape, 2 ** len(COLOURS) - 1, np.uint16)
    for channel, table in zip((*cv2.split(hsv), neutral), inside, strict=True):
        table_of_bits = (bits * table).sum(axis=1).astype(np.uint16)
        within = within & np.asarray(cv2.LUT(channel, table_of_bits[None]))
    # Ink of some opacity over glass is the lighter, the less saturated: a line in value and saturation bounds purple.
    faded = np.maximum(80, 70 + 1.5 * np.maximum(190 - np.arange(256), 0)).astype(np.float32)
    inks = np.zeros((len(INKS), *neutral.shape), bool)
    for (ink, counts, *_), bit in zip(COLOURS, bits.tolist(), strict=True):
        mask = (within & np.uint16(bit)) > 0
        if ink == "purple":
            mask &= hsv[..., 1] >= cv2.LUT(hsv[..., 2], faded[None])
        inks[INKS.index(ink)] |= mask if counts == "anywhere" else mask & where[counts]
    return inks


def _name(colour: np.ndarray, glass: np.ndarray) -> int:
    """Number in `INKS` of an ink of this colour on glass."""
    hsv, neutral = _colours(np.rint(colour).astype(np.uint8)[None, None], glass)
    if neutral[0, 0] <= NEUTRAL:
        return INKS.index("black")
    return int(np.searchsorted(LAST_HUES, hsv[0, 0, 0])) % len(LAST_HUES)


def _enlarged(mask: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    size = thumbnail.shape[1], thumbnail.shape[0]
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _every_second(pixels: np.ndarray) -> np.ndarray:
    """Every second pixel of every second row."""
    height, width = pixels.shape[:2]
    if height % STEP or width % STEP:  # OpenCV would take others
        return np.ascontiguousarray(pixels[::STEP, ::STEP])
    return cv2.resize(pixels, (width // STEP, height // STEP), interpolation=cv2.INTER_NEAREST)


def _colours(pixels: np.ndarray, glass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue (in 2 degrees), saturation and value uint8 (h, w, 3) with the glass made white; the colours' largest difference uint8 (h, w)."""
    balance = np.stack([np.clip(np.arange(256) * WHITE / colour, 0, 255) for colour in glass], axis=-1)
    pixels = cv2.LUT(pixels, np.rint(balance).astype(np.uint8)[None])
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    return hsv, cv2.subtract(hsv[..., 2], _darkest(pixels))


def _darkest(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = cv2.split(pixels)
    return cv2.min(cv2.min(red, green), blue)


def _contrast(thumbnail: np.ndarray, glass: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Relative contrast of the density around every second pixel, float32 (h / 2, w / 2), which of them are clearly darker than glass, and
    the contrast that three quarters of these, but for edges, do not exceed: that of the slide's tissue."""
    table = np.maximum(-np.log10((np.arange(256) + 1) / (glass.min() + 1)), 0).astype(np.float32)
    strips = [_means(thumbnail, top, table) for top in range(0, len(thumbnail), STRIP_PX)]
    mean, of_squares = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    contrast = np.sqrt(np.maximum(of_squares - mean * mean, 0)) / np.maximum(mean, np.float32(1e-3))
    dark = mean >= LEAST_DENSITY
    inner = cv2.erode(dark.astype(np.uint8), np.ones((EDGE_PX,) * 2, np.uint8)) > 0
    return contrast, dark, float(np.percentile(contrast[inner][::4], 75)) if inner.any() else 0.0


def _means(thumbnail: np.ndarray, top: int, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the density and of its square around every second pixel of the rows from `top`, float32 (STRIP_PX / 2, w / 2).

    A strip's numbers fit the processor's cache: this takes half the time of the whole picture at once.
    """
    above = min(top, SMOOTH_PX - 1)
    dense = cv2.LUT(_darkest(thumbnail[top - above : top + STRIP_PX + SMOOTH_PX - 1]), table[None])
    rows = slice(above // STEP, (above + STRIP_PX) // STEP)
    mean, of_squares = (_every_second(cv2.blur(values, (SMOOTH_PX,) * 2))[rows] for values in (dense, dense * dense))
    return mean, of_squares
