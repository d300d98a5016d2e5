"""Slides one after another -> batches of one size that cross their borders, cut into parts that one reader fills."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mil.features.tiling import Tiling

SLOT_BYTES = 2**28  # most bytes of tiles in a batch; large tiles make smaller batches
PART_TILES = 128  # tiles of one order: enough rows together that few compressed tiles are decoded twice


def batch_tiles(batch_size: int, size_px: int) -> int:
    """Tiles of `size_px` in a batch: `batch_size`, or as many as a slot of the ring holds."""
    return max(1, min(batch_size, SLOT_BYTES // (size_px * size_px * 3)))


@dataclass(eq=False)
class Work:
    """One slide that is to be extracted, and how far it is."""

    slide_id: str
    path: str
    tiling: Tiling
    recipe: str
    on_disk: str
    """State of its files before they were compared with those that were tiled."""
    error: tuple[str, str] | None = None
    """State and reason, once it failed."""
    stain: np.ndarray | None = None
    """What stain normalisation was found for it; None: none is wanted."""


@dataclass(frozen=True)
class TilePart:
    """Tiles `first` ... `first + count - 1` of a slide, at `offset` in a batch."""

    work: Work
    first: int
    count: int
    offset: int

    @property
    def last(self) -> bool:
        """Whether the slide's tiles end here."""
        return self.first + self.count == len(self.work.tiling.coords)

    def order(self, number: int, memory_offset: int, tile_bytes: int) -> dict[str, Any]:
        """What a reader is asked; `memory_offset` is the batch's place in the shared memory."""
        tiling = self.work.tiling
        return {
            "number": number,
            "path": self.work.path,
            "slide_mpp": tiling.slide_mpp,
            "coords": tiling.coords[self.first : self.first + self.count].tolist(),
            "size_px": tiling.size_px,
            "mpp": tiling.mpp,
            "reading": dict(tiling.reading),
            "offset": memory_offset + self.offset * tile_bytes,
        }


@dataclass(eq=False)
class TileBatch:
    """Parts that go to the device together, in a slot of the ring."""

    slot: int
    parts: list[TilePart] = field(default_factory=list)
    missing: dict[int, list[int]] = field(default_factory=dict)
    """Tiles that could not be read and were left out, by the part's place in `parts`."""
    waiting: int = 0
    """Parts that readers still work on."""
    count: int = 0
    """Tiles, left-out ones included."""

    def kept(self, part: int) -> np.ndarray:
        """Which of a part's tiles were read, as offsets into the part."""
        return np.setdiff1d(np.arange(self.parts[part].count), self.missing.get(part, []))


def parts_of(works: list[Work], batch_tiles: int, failed: Callable[[Work], bool]) -> Iterator[list[TilePart]]:
    """The parts of one batch after another. Slides that failed meanwhile are left out of later batches."""
    batch: list[TilePart] = []
    filled = 0
    for work in works:
        total, first = len(work.tiling.coords), 0
        while first < total and not failed(work):
            count = min(PART_TILES, total - first, batch_tiles - filled)
            batch.append(TilePart(work, first, count, filled))
            first, filled = first + count, filled + count
            if filled == batch_tiles:
                yield batch
                batch, filled = [], 0
    if batch:
        yield batch
