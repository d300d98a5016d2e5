"""Tiles of a slide in order, by several threads, each compressed segment decoded once however the grid falls on it.

The tiles are cut into short runs. A plan made beforehand says which run decodes which segment and how many runs use it; a segment is
dropped after its last use. What is kept at a time is about one row of segments across the tissue, at most `KEPT_BYTES` or one segment:
where a row is larger than that, segments that would be kept longest are decoded again instead.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from mil.errors import SlideError
from mil.slides.readers import Reader
from mil.slides.readers.segments import Segment, SegmentGrid
from mil.slides.resample import resample

TILES_A_RUN = 16
RUN_BYTES = 2**25  # of source pixels; fewer tiles make a run where tiles are large
KEPT_BYTES = 2**29


@dataclass(frozen=True)
class Regions:
    """What to read for each tile: integer source boxes (n, 4: x, y, width, height) of one level, and how to resample them."""

    level: int
    boxes: np.ndarray
    offsets: np.ndarray
    scale: tuple[float, float]
    size: tuple[int, int]
    grid: SegmentGrid | None
    """The level's segments, perhaps brought down while they are decoded; None where the reader has none."""

    def resampled(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """The pixels of one box brought to the size and scale that is wanted."""
        offset_x, offset_y = self.offsets[index].tolist()
        return resample(pixels, (offset_x, offset_y), self.scale, self.size)


@dataclass(frozen=True)
class ReadingPlan:
    """Which run uses and which decodes each stay of a segment in memory."""

    segments: np.ndarray
    """Segment number of each stay."""
    owners: np.ndarray
    """Run that decodes it."""
    uses: np.ndarray
    """Runs that use it."""
    by_run: list[np.ndarray]
    """Stays that each run uses."""


def plan(grid: SegmentGrid, boxes: np.ndarray, tiles_a_run: int, kept_bytes: int = KEPT_BYTES) -> ReadingPlan:
    """Stays of segments in memory for runs of `tiles_a_run` tiles read in order."""
    runs, numbers = [], []
    for index, (x, y, width, height) in enumerate(boxes.tolist()):
        touched = grid.touched(x, y, width, height)
        numbers += touched
        runs += [index // tiles_a_run] * len(touched)
    num_runs = -(-len(boxes) // tiles_a_run)
    pairs = np.unique(np.asarray(numbers, np.int64) * num_runs + np.asarray(runs, np.int64))
    segment, run = np.divmod(pairs, max(num_runs, 1))
    gap = np.diff(run, prepend=run[:1])
    first = np.diff(segment, prepend=-1) != 0
    again = first | (gap > _longest_gap(first, gap, run, num_runs, max(kept_bytes // grid.segment_bytes, 1)))
    stay = np.cumsum(again) - 1
    order = np.argsort(run, kind="stable")
    by_run = np.split(stay[order], np.searchsorted(run[order], np.arange(1, num_runs)))
    return ReadingPlan(segment[again], run[again], np.bincount(stay, minlength=0), by_run)


def _longest_gap(first: np.ndarray, gap: np.ndarray, run: np.ndarray, num_runs: int, most: int) -> int:
    """The longest wait for its next use through which a segment is kept, so that at most `most` are kept at a time."""
    waits = np.unique(gap[~first])[::-1]
    for longest in waits:
        held = ~first & (gap <= longest)
        kept = np.zeros(num_runs + 1, np.int64)
        np.add.at(kept, run[held] - gap[held], 1)
        np.add.at(kept, run[held], -1)
        if kept.cumsum().max(initial=0) <= most:
            return int(longest)
    return 0


def read_in_order(
    reader: Reader, regions: Regions, threads: int, batch: int, drop: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, tiles) of up to `batch` tiles, in order. An unreadable tile raises, or is left out with `drop`."""
    reading = _Reading(reader, regions, drop)
    a_run = reading.tiles_a_run
    batch = max(batch // a_run, 1) * a_run
    starts = range(0, len(regions.boxes), batch)
    waiting: deque[tuple[int, np.ndarray, np.ndarray, list[Future]]] = deque()
    with ThreadPoolExecutor(threads, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            for start in starts:
                waiting.append(_submit(pool, reading, start, min(batch, len(regions.boxes) - start)))
                if len(waiting) > 1 + -(-threads * a_run // batch):
                    yield from _collected(*waiting.popleft())
            while waiting:
                yield from _collected(*waiting.popleft())
        finally:
            reading.stop()
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, reading: "_Reading", start: int, count: int):
    width, height = reading.regions.size
    tiles, good = np.empty((count, height, width, 3), np.uint8), np.ones(count, bool)
    runs = range(start // reading.tiles_a_run, -(-(start + count) // reading.tiles_a_run))
    return start, tiles, good, [pool.submit(reading.run, run, start, tiles, good) for run in runs]


def _collected(
    start: int, tiles: np.ndarray, good: np.ndarray, futures: list[Future]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for future in futures:
        future.result()
    indices = start + np.arange(len(tiles))
    if good.all():
        yield indices, tiles
    elif good.any():
        yield indices[good], tiles[good]


class _Reading:
    """The state of one pass: decoded segments by stay, and which runs have decoded theirs."""

    def __init__(self, reader: Reader, regions: Regions, drop: bool) -> None:
        self.reader, self.regions, self.drop = reader, regions, drop
        self.grid = regions.grid
        largest = 3 * int((regions.boxes[:, 2] * regions.boxes[:, 3]).max(initial=1))
        self.tiles_a_run = max(1, min(TILES_A_RUN, RUN_BYTES // largest))
        self.plan = plan(self.grid, regions.boxes, self.tiles_a_run) if self.grid is not None else None
        self.decoded: dict[int, Segment] = {}
        self.lock = threading.Lock()
        if self.plan is not None:
            self.uses = self.plan.uses.copy()
            self.ready = [threading.Event() for _ in self.plan.by_run]

    def stop(self) -> None:
        """Let nobody wait for a run that will not come."""
        for event in self.ready if self.plan is not None else []:
            event.set()

    def run(self, run: int, start: int, tiles: np.ndarray, good: np.ndarray) -> None:
        """Read the tiles of one run into `tiles`, whose first row is tile `start`."""
        segments = self._segments(run) if self.plan is not None else {}
        for index in range(run * self.tiles_a_run, min((run + 1) * self.tiles_a_run, len(self.regions.boxes))):
            try:
                tiles[index - start] = self._tile(index, segments)
            except SlideError as error:
                if not self.drop or error.state != "unreadable_region":
                    raise
                good[index - start] = False

    def _segments(self, run: int) -> dict[int, Segment]:
        """The run's segments by number: its own decoded here, the others' waited for."""
        assert self.plan is not None
        assert self.grid is not None
        stays = self.plan.by_run[run]
        owners = self.plan.owners[stays]
        try:
            for stay in stays[owners == run].tolist():
                try:
                    pixels = self.grid.load(int(self.plan.segments[stay]))
                except SlideError as error:
                    pixels = error
                self.decoded[stay] = pixels
        finally:
            self.ready[run].set()
        for owner in np.unique(owners[owners != run]).tolist():
            self.ready[owner].wait()
        stopped = SlideError("unreadable_region", f"{self.grid.name}: reading was stopped")
        segments = {int(self.plan.segments[stay]): self.decoded.get(stay, stopped) for stay in stays.tolist()}
        with self.lock:
            for stay in stays.tolist():
                self.uses[stay] -= 1
                if not self.uses[stay]:
                    self.decoded.pop(stay, None)
        return segments

    def _tile(self, index: int, segments: dict[int, Segment]) -> np.ndarray:
        x, y, width, height = self.regions.boxes[index].tolist()
        if self.grid is None:
            pixels = self.reader.read(self.regions.level, x, y, width, height)
        else:
            pixels = self.grid.assemble(x, y, width, height, segments)
        return self.regions.resampled(index, pixels)
