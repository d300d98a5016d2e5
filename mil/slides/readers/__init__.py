"""One slide file -> levels of RGB pixels: what every reader offers, and how a path finds its reader."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from mil.slides.readers.segments import SegmentGrid

MAX_PIXELS = 1e11  # the largest scans in use are about 250,000 x 250,000; a header that says more is a bomb or a fault
ROUNDED_BY_PX = 2  # at most, of a level's sides: some converters round to even numbers
MOST_ROUNDED = 0.05  # of a level of a few pixels
LEAST_SHIFT_PX = 2.0  # pixels of a level that its far end lies off by; a smaller shift is left as it is
MAX_REGION_PIXELS = 2**28  # one read, 0.8 GB as RGB; nothing here asks for a tenth of it


@dataclass(frozen=True)
class Level:
    """One level of the pyramid; `downsample` is level-0 pixels a pixel, 1.0 for the first."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `mpp_x`, `mpp_y` in microns a level-0 pixel, None where the file does not say."""

    format: str
    levels: tuple[Level, ...]
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str
    objective_power: float | None
    remarks: tuple[str, ...] = ()
    """What a person should know of the file: images that are not read."""


@dataclass(frozen=True)
class Gaps:
    """Where the file holds no pixels: `cells` bool (rows, columns) over the whole slide, `cell_px` (x, y) level-0 pixels a cell."""

    cells: np.ndarray
    cell_px: tuple[float, float]


class Reader(Protocol):
    """An open slide file."""

    header: Header

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of `level` from its own pixel (x, y), uint8 (height, width, 3); white outside, `SlideError` on faults."""
        ...

    def grid(self, level: int) -> "SegmentGrid | None":
        """The level as compressed segments that can be read by their offsets; None where the reader has none."""
        return None

    def gaps(self) -> Gaps | None:
        """Where the file holds no pixels; None where it holds all, as far as was read until now."""
        return None

    def close(self) -> None:
        """Release the file."""
        ...


def levels_of(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from (width, height) of each. A size that is an exact division rounded up or down gets that whole ratio."""
    width, height = sizes[0]
    return tuple(Level(w, h, _downsample(width, height, w, h)) for w, h in sizes)


def levels_alike(levels: tuple[Level, ...]) -> int:
    """How many of the first levels have level 0's ratio of width to height, but for rounding by two pixels: a picture of another part of
    the slide is no level of it, nor is one that was filled up to whole tiles."""
    width, height = levels[0].width, levels[0].height
    for index, level in enumerate(levels):
        x, y = width / level.width, height / level.height
        rounding = min(ROUNDED_BY_PX * (1 / level.width + 1 / level.height), MOST_ROUNDED)
        if abs(x - y) > rounding * max(x, y):
            return index
    return len(levels)


def _downsample(width: int, height: int, w: int, h: int) -> float:
    # The mean of both axes, as in OpenSlide, is off by up to a percent on small levels whose sizes were cut to integers.
    ratio = (width / w + height / h) / 2
    whole = round(ratio)
    if whole >= 1 and w in {width // whole, -(-width // whole)} and h in {height // whole, -(-height // whole)}:
        return float(whole)
    # Of a narrow level the longer axis alone is known well: 40 pixels cut to 13 are a ratio of 3.08, not 3.17.
    longer = width / w if width >= height else height / h
    return longer if abs(ratio / longer - 1) * max(w, h) > LEAST_SHIFT_PX else ratio
