"""A slide file -> pixels at any physical resolution.

Coordinates are (x, y) in level-0 pixels, top left first; images are uint8 RGB (height, width, 3). Outside the scanned area is white.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from mil.errors import MilError, SlideError
from mil.machine import cores
from mil.slides.likeness import alike
from mil.slides.passes import Regions, read_in_order
from mil.slides.readers import MAX_PIXELS, MAX_REGION_PIXELS, Header, Reader
from mil.slides.readers.choose import reader_of
from mil.slides.resample import extents

COARSER_BY = 1.01  # a level may be this much coarser than what is asked for: 0.5027 microns serves 0.5
BLOCK_PX = 1024  # output pixels a side that a thumbnail is put together from
BLOCK_SOURCE_PX = 2048  # source pixels a side that a block is made of, at most
SMALLEST_PATCH_PX = 16
UNREADABLE_GREY = 128


@dataclass(frozen=True)
class Reading:
    """How tiles are read; the same names as in `TileSpec`, which documents them."""

    level: Literal["finest", "nearest"] = "finest"
    decoding: Literal["full", "scaled"] = "full"
    drop_unreadable: bool = False


EXACT = Reading()
NEAREST_LEVEL = Reading(level="nearest")


@dataclass(frozen=True, kw_only=True)
class Slide(Header):
    """An open slide. `mpp_source` names the header field that the mpp comes from, or `sheet`; `reader.header` is the file's."""

    path: Path
    reader: Reader

    @property
    def width(self) -> int:
        """Level-0 pixels across."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Level-0 pixels down."""
        return self.levels[0].height

    @property
    def mpp(self) -> float | None:
        """Microns a level-0 pixel, mean of both axes."""
        if self.mpp_x is None or self.mpp_y is None:
            return None
        return (self.mpp_x + self.mpp_y) / 2

    @cached_property
    def alike(self) -> int:
        """How many of the first levels show the same picture; the others are not read but by `read_region`."""
        return alike(self.reader, self.levels)

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """`width` x `height` pixels of `level` from level-0 pixel (x, y), as stored; `SlideError('unreadable_region')` on faults."""
        if not 0 <= level < len(self.levels):
            raise MilError(f"{self.path.name}: level {level} is not there; its levels are 0 to {len(self.levels) - 1}")
        downsample = self.levels[level].downsample
        self._check_size(width, height)
        return self.reader.read(level, round(x / downsample), round(y / downsample), width, height)

    def read_area(self, x: float, y: float, size: tuple[int, int], mpp: float, how: Reading = EXACT) -> np.ndarray:
        """`size` (width, height) pixels of exactly `mpp` microns from level-0 position (x, y).

        Brought to scale by area, or by linear interpolation where the slide is coarser.
        """
        self._check_size(*size)
        regions = self.regions(np.array([[x, y]]), size, mpp, how)
        left, top, width, height = regions.boxes[0].tolist()
        self._check_size(width, height)
        grid = regions.grid
        if grid is None or grid.divisor == 1:
            pixels = self.reader.read(regions.level, left, top, width, height)
        else:
            segments = {number: grid.load(number) for number in grid.touched(left, top, width, height)}
            pixels = grid.assemble(left, top, width, height, segments)
        return regions.resampled(0, pixels)

    def read_tile(self, x: int, y: int, size_px: int, mpp: float, how: Reading = EXACT) -> np.ndarray:
        """The tile (size_px, size_px, 3) at `mpp` whose corner is level-0 pixel (x, y): `size_px * mpp` microns a side, exactly."""
        return self.read_area(x, y, (size_px, size_px), mpp, how)

    def read_tiles(
        self,
        coords: np.ndarray,
        size_px: int,
        mpp: float,
        threads: int | None = None,
        how: Reading = EXACT,
        batch: int = 64,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tiles of `coords` (n, 2) in their order, as (indices, uint8 (m, size, size, 3)), at most `batch` at a time.

        `threads`: the cores this job was given where None. Every compressed tile of the file is decoded once a pass; memory
        is bounded (see `mil.slides.passes`). A tile that cannot be decoded is `SlideError('unreadable_region')`, or with
        `how.drop_unreadable` is left out, its index with it.
        """
        regions = self.regions(np.asarray(coords, np.float64).reshape(-1, 2), (size_px, size_px), mpp, how)
        if len(regions.boxes):
            self._check_size(*regions.boxes[0, 2:].tolist())
        return read_in_order(self.reader, regions, cores(threads), batch, how.drop_unreadable)

    def regions(self, corners: np.ndarray, size: tuple[int, int], mpp: float, how: Reading = EXACT) -> Regions:
        """Source boxes of areas of `size` pixels at `mpp` from level-0 positions `corners` (n, 2)."""
        per_x, per_y = self.level0_px(mpp)
        level = 0 if how.level == "finest" else self.level_for(mpp)
        downsample = self.levels[level].downsample
        grid = self.reader.grid(level)
        if grid is not None and how.decoding == "scaled":
            grid = grid.divided(min(per_x, per_y) / downsample, corners / downsample)
            downsample *= grid.divisor
        scale = _snapped(per_x / downsample), _snapped(per_y / downsample)
        left, top = corners[:, 0] / downsample, corners[:, 1] / downsample
        first_x, columns = extents(left, scale[0], size[0])
        first_y, rows = extents(top, scale[1], size[1])
        boxes = np.stack([first_x, first_y, columns, rows], axis=1)
        offsets = np.stack([left - first_x, top - first_y], axis=1)
        if grid is not None and grid.divisor == 1 and scale[0] == scale[1] and not offsets.any():
            grid = grid.averaged(scale[0], boxes)
            if grid.divisor > 1:
                boxes, scale = boxes // grid.divisor, (1.0, 1.0)
        return Regions(level=level, boxes=boxes, offsets=offsets, scale=scale, size=size, grid=grid)

    def thumbnail(self, mpp: float, threads: int | None = None, drop_unreadable: bool = False) -> np.ndarray:
        """The whole slide at `mpp`, put together from blocks so that memory stays bounded.

        With `drop_unreadable`, what cannot be decoded is grey, so that nobody takes it for glass.
        """
        per_x, per_y = self.level0_px(mpp)
        width, height = max(math.ceil(self.width / per_x), 1), max(math.ceil(self.height / per_y), 1)
        if width * height > MAX_REGION_PIXELS:
            raise SlideError(
                "implausible_size",
                f"{self.path.name}: {self.width} x {self.height} pixels of {self.mpp:g} microns are "
                f"{width} x {height} at {mpp:g} microns; too many for a thumbnail, check the mpp",
            )
        source = max(per_x, per_y) / self.levels[self.level_for(mpp)].downsample
        block = max(min(BLOCK_PX, int(BLOCK_SOURCE_PX / source), max(width, height)), 1)
        corners = np.array([(x, y) for y in range(0, height, block) for x in range(0, width, block)])
        whole = np.full((height, width, 3), UNREADABLE_GREY, np.uint8)
        how = Reading(level="nearest", drop_unreadable=drop_unreadable)
        missing = np.ones(len(corners), bool)
        for indices, blocks in self.read_tiles(corners * (per_x, per_y), block, mpp, threads, how, batch=1):
            missing[indices] = False
            for (x, y), pixels in zip(corners[indices], blocks, strict=True):
                whole[y : y + block, x : x + block] = pixels[: height - y, : width - x]
        for x, y in corners[missing].tolist():
            self._patch(whole, x, y, block, mpp)
        return whole

    def level_for(self, mpp: float) -> int:
        """The coarsest level that is not coarser than `mpp` (by more than 1 %); level 0 where none is."""
        per_pixel = min(self.level0_px(mpp)) * COARSER_BY
        fitting = [index for index, level in enumerate(self.levels[: self.alike]) if level.downsample <= per_pixel]
        return max(fitting, key=lambda index: self.levels[index].downsample, default=0)

    def level0_px(self, mpp: float) -> tuple[float, float]:
        """Level-0 pixels (x, y) that a pixel of `mpp` microns covers; `SlideError('no_mpp')` where the slide's mpp is unknown."""
        if self.mpp_x is None or self.mpp_y is None:
            raise SlideError(
                "no_mpp", f"{self.path.name}: the file does not say its microns a pixel; fill the sheet's mpp column"
            )
        return mpp / self.mpp_x, mpp / self.mpp_y

    def _patch(self, whole: np.ndarray, x: int, y: int, side: int, mpp: float) -> None:
        """Fill a thumbnail's square with what can be read of it, cutting it up around what cannot."""
        square = whole[y : y + side, x : x + side]
        if not square.size:
            return
        per_x, per_y = self.level0_px(mpp)
        try:
            square[:] = self.read_area(x * per_x, y * per_y, (square.shape[1], square.shape[0]), mpp, NEAREST_LEVEL)
        except SlideError as error:
            if error.state != "unreadable_region":
                raise
            if side > SMALLEST_PATCH_PX:
                half = -(-side // 2)
                for left, top in ((x, y), (x + half, y), (x, y + half), (x + half, y + half)):
                    self._patch(whole[: y + side, : x + side], left, top, half, mpp)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_REGION_PIXELS:
            raise SlideError("implausible_size", f"{self.path.name}: a region of {width} x {height} pixels is refused")


@contextmanager
def open_slide(path: str | Path, mpp: float | None = None) -> Iterator[Slide]:
    """Open `path`; `mpp` (the sheet's) overrides the header's. `SlideError(state, reason)` where it is no slide."""
    path = Path(path)
    if mpp is not None and not 0 < mpp < np.inf:
        raise MilError(f"{path.name}: {mpp} microns per pixel are not above 0; give the scale of level 0, or none")
    reader = reader_of(path)
    try:
        header = reader.header
        width, height = header.levels[0].width, header.levels[0].height
        if width * height > MAX_PIXELS:
            raise SlideError(
                "implausible_size", f"{path.name}: declares {width} x {height} pixels; more than any scanner makes"
            )
        stated = header if mpp is None else replace(header, mpp_x=mpp, mpp_y=mpp, mpp_source="sheet")
        yield Slide(**vars(stated), path=path, reader=reader)
    finally:
        reader.close()


def _snapped(scale: float) -> float:
    """A ratio that is whole but for rounding (one part in a million) is made whole, so that nothing is blurred for it."""
    return float(round(scale)) if abs(scale - round(scale)) <= 1e-6 * scale else scale
