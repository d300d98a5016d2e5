"""Ink that lies flat on glass somewhere -> the same ink over tissue, from 60 % opacity: what tissue under it would look like.

Ink of colour C and opacity a shows as m = (1 - a) glass + a C on glass, and as p = m - (1 - a) (glass - tissue) on tissue. So m - p is
at most 40 % of the glass, and its colours stand to each other as in the tissue's own absorption: green most, as haematoxylin and eosin absorb it.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from mil.tissue.unscanned import large_pieces

MOST_SHOWN = 0.4  # largest share of what lies under ink that shows through it
CORE, CLOSE = 6, 10  # differences of colours, of 255
EVEN = (
    0.65  # least share of an ink's pixels on glass within CORE of its colour; of tissue out of focus it is up to 0.52
)
SAME = 22  # largest difference of one ink's colours on glass, of 255
NOISE = 8  # of 255
BIN = 12
MOST_INKS = 8
LEAST_PIECE_PX = 16
PATCHY_PX, LEAST_SHARE, PASSES = (
    7,
    0.5,
    3,
)  # of the square around a pixel, at least this share is ink too; judged so often
CLOSED_PX = 5  # gaps of ink up to this many pixels are closed
NEAR_PX = 21  # side of the square around a pixel in which bare glass must lie
RING_PX = 15  # side of the square around a pixel that counts as beside it
GLASS_BESIDE = 0.06  # least share of what is beside ink on glass that is bare


def traced(
    pixels: Callable[[], np.ndarray], glass: np.ndarray, flat: np.ndarray, dense: np.ndarray, least_px: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(colour on glass (3,), where that ink is, bool (h, w)) of each ink of which `least_px` pixels lie flat beside bare glass.

    `pixels` gives uint8 (h, w, 3), and is only called where there may be ink; `flat` where they hardly vary, `dense` where they are
    darker than glass.
    """
    if np.count_nonzero(flat) < least_px:
        return
    shades = pixels().astype(np.int16)
    done = np.zeros(flat.shape, bool)
    for colour, seeds in sorted(_on_glass(shades, flat, dense, least_px), key=lambda pair: -pair[0].sum()):
        if done[seeds].mean() > 0.5:  # the same ink, over tissue
            continue
        like = under = _as_under(shades, colour, glass) | seeds
        for _ in range(PASSES):  # tissue of such colours without ink is patchy, and what it leaves of itself more so
            share = cv2.blur(under.astype(np.float32), (PATCHY_PX, PATCHY_PX))
            under = (under & (share >= LEAST_SHARE)) | seeds
        closed = cv2.morphologyEx(under.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((CLOSED_PX,) * 2, np.uint8))
        number, labels = cv2.connectedComponents(closed, connectivity=8)
        joined = np.bincount(labels[seeds].ravel(), minlength=number) > 0
        joined[0] = False
        mask = joined[labels.astype(np.intp, copy=False)]
        mask |= (cv2.dilate(mask.astype(np.uint8), np.ones((CLOSED_PX,) * 2, np.uint8)) > 0) & like  # its border
        done |= mask
        yield colour, mask


def _on_glass(
    shades: np.ndarray, flat: np.ndarray, dense: np.ndarray, least_px: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(colour, pixels) of the commonest colours of the flat pixels: even ones, of at least `least_px` pixels, with bare glass beside them."""
    inks = []
    near_bare = cv2.dilate((~dense).astype(np.uint8), np.ones((NEAR_PX,) * 2, np.uint8)) > 0
    left = np.flatnonzero(large_pieces(flat, LEAST_PIECE_PX) & near_bare)
    for _ in range(MOST_INKS):
        if len(left) < least_px:
            break
        colours = shades.reshape(-1, 3)[left]
        bins = colours // BIN @ np.array([1, 32, 1024])
        values, counts = np.unique(bins, return_counts=True)
        colour = np.median(colours[bins == values[counts.argmax()]], axis=0)
        colour = np.median(colours[_alike(colours, colour, CLOSE)], axis=0)
        near = _alike(colours, colour, SAME)
        is_even = _alike(colours, colour, CORE).sum() >= EVEN * near.sum()
        seeds = np.zeros(flat.shape, bool)
        seeds.flat[left[near]] = True
        if near.sum() >= least_px and is_even and _is_on_glass(seeds, dense):
            inks.append((colour.astype(np.int16), seeds))
        left = left[~near]
    return inks


def _alike(colours: np.ndarray, colour: np.ndarray, most: int) -> np.ndarray:
    return np.asarray(np.abs(colours - colour).max(axis=1) <= most)


def _is_on_glass(seeds: np.ndarray, dense: np.ndarray) -> bool:
    beside = (cv2.dilate(seeds.astype(np.uint8), np.ones((RING_PX,) * 2, np.uint8)) > 0) & ~seeds
    return (beside & ~dense).sum() >= GLASS_BESIDE * beside.sum()


def _as_under(shades: np.ndarray, colour: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Where a pixel may be tissue under this ink, or the ink alone."""
    absorbed = colour - shades
    red, green, blue = cv2.split(absorbed)
    within = ((absorbed >= -NOISE) & (absorbed <= (MOST_SHOWN * glass + NOISE).astype(np.int16))).all(axis=2)
    as_stained = (green >= 1.1 * np.maximum(red, blue) - NOISE / 2) & (blue >= 0.2 * green - NOISE / 2)
    return within & (as_stained | (np.abs(absorbed).max(axis=2) <= 1.5 * NOISE))
