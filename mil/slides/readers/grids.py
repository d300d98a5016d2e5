"""A slide whose levels are grids of compressed segments, read by their offsets: what TIFF and DICOM readers have in common."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from mil.errors import SlideError
from mil.slides.readers import Gaps, Header, Level, Reader, levels_alike
from mil.slides.readers.segments import SegmentGrid

KEPT_BYTES = 2**26  # decoded segments kept between single reads
MOST_LOST = 0.001  # of the slide's area that a level may lack and level 0 has


def usable(levels: tuple[Level, ...], grids: list[SegmentGrid | None]) -> int:
    """How many of the first levels show the slide: `levels_alike`, none without tiles that level 0 has, which would be white."""
    lost = [0.0 if grid is None else grid.missing_share() for grid in grids]
    alike = levels_alike(levels)
    return next((index for index in range(alike) if lost[index] > lost[0] + MOST_LOST), alike)


class GridReader:
    """Reads levels by their grids. `behind` is the reader of the levels whose grid is None; `files` are closed with the reader."""

    header: Header
    grids: list[SegmentGrid | None]

    def __init__(self, path: Path, behind: Reader | None = None) -> None:
        self.path = path
        self.behind = behind
        self.files: list[BinaryIO] = []
        self._kept: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._lock = Lock()

    def grid(self, level: int) -> SegmentGrid | None:
        """The level as segments; None where it is read through another reader."""
        return self.grids[level]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of `level` from its own pixel (x, y), uint8 (height, width, 3); white outside, `SlideError` on faults."""
        grid = self.grids[level]
        if grid is None:
            if self.behind is None:
                raise SlideError("unreadable", f"{self.path.name}: level {level} has no reader")
            return self.behind.read(level, x, y, width, height)
        segments = {number: self._segment(level, grid, number) for number in grid.touched(x, y, width, height)}
        return grid.assemble(x, y, width, height, segments)

    def gaps(self) -> Gaps | None:
        """The segments of level 0 that have no bytes."""
        grid = self.grids[0]
        if grid is None:
            return None if self.behind is None else self.behind.gaps()
        cells = grid.missing()
        return Gaps(cells, (grid.segment_width, grid.segment_height)) if cells.any() else None

    def close(self) -> None:
        """Release the files."""
        for file in self.files:
            file.close()
        if self.behind is not None:
            self.behind.close()

    def _segment(self, level: int, grid: SegmentGrid, number: int) -> np.ndarray | None:
        with self._lock:
            if (level, number) in self._kept:
                self._kept.move_to_end((level, number))
                return self._kept[level, number]
        pixels = grid.load(number)
        with self._lock:
            self._kept[level, number] = pixels
            most = max(KEPT_BYTES // grid.segment_bytes, 1)
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return pixels
