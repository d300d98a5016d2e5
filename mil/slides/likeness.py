"""Levels of a slide -> how many of the first show the same picture.

A tiled label without a description, a level of another slide or a white one is no level: tissue would be sought on it.
"""

from contextlib import suppress

import cv2
import numpy as np

from mil.errors import SlideError
from mil.slides.readers import Level, Reader

PATCH_PX, LARGEST_PX = 32, 512  # side of a patch of the coarser level, and at most of the finer one
CELLS, FEWEST_CELLS = 4, 32  # a patch is compared by the means of 4 x 4 cells
LEAST_SPREAD, LEAST_LIKENESS = 10.0, 0.85  # of 255; correlation: levels of real slides have 0.999, two pixels off 0.91


def alike(reader: Reader, levels: tuple[Level, ...]) -> int:
    """How many of the first levels look like the next finer one, at 16 places each."""
    return next((index for index in range(1, len(levels)) if not _is_like_finer(reader, levels, index)), len(levels))


def _is_like_finer(reader: Reader, levels: tuple[Level, ...], index: int) -> bool:
    level = levels[index]
    factor = level.downsample / levels[index - 1].downsample
    side = min(PATCH_PX, level.width, level.height, max(int(LARGEST_PX / factor), CELLS))
    rows, columns = (np.linspace(0, length - side, 4).astype(int).tolist() for length in (level.height, level.width))
    places = [(x, y, side, side) for y in rows for x in columns]
    means = np.full((2, len(places), CELLS, CELLS), np.nan)
    for pair, number, scale in ((0, index, 1.0), (1, index - 1, factor)):
        for place, box in enumerate(places):
            with suppress(SlideError):  # what cannot be decoded is said where it is needed
                pixels = reader.read(number, *(round(length * scale) for length in box))
                held = np.where(pixels.min(axis=2) < 255, 1.0, np.nan)  # a level may hold what the finer one lacks
                grey = pixels.mean(axis=2) * (held if pair else 1.0)
                means[pair, place] = cv2.resize(grey, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    cells = means.reshape(2, -1)
    cells = cells[:, ~np.isnan(cells).any(axis=0)]
    if cells.shape[1] < FEWEST_CELLS or cells.std(axis=1).max() <= LEAST_SPREAD:
        return True
    return bool(cells.std(axis=1).min() > 0 and np.corrcoef(cells)[0, 1] >= LEAST_LIKENESS)
