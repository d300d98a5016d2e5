"""Slides -> files: readers fill a ring of batches, the device empties it, a thread writes; nobody waits who need not.

Batches are planned in the order of the slides and tiles, whoever reads them first, so what comes out does not depend on
timing. A slide that fails is left out from there on; its tiles already in a batch are computed and thrown away.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mil.features.device import pinned
from mil.features.engine import EncoderEngine, Ticket
from mil.features.plan import PART_TILES, TileBatch, TilePart, Work, batch_tiles, parts_of
from mil.features.profile import Profile
from mil.features.readers import ORDERS_AHEAD, SharedMemory, start_readers
from mil.features.writing import FeatureWriter, Piece

IN_FLIGHT = 3  # batches handed to the device at a time
DEVICE_POLL_S = 0.001  # how often the device is asked whether it is done while readers work


class Pipeline:
    """One pass over the slides of `works`, whose tiles all have `size_px`."""

    def __init__(
        self,
        works: list[Work],
        engine: EncoderEngine,
        readers: int,
        size_px: int,
        writer: FeatureWriter,
        profile: Profile,
    ) -> None:
        self.engine, self.writer, self.profile = engine, writer, profile
        self.size_px, self.tile_bytes = size_px, size_px * size_px * 3
        total = sum(len(work.tiling.coords) for work in works)
        self.batch_tiles = min(batch_tiles(engine.spec.batch_size, size_px), max(total, 1))
        per_batch = -(-self.batch_tiles // PART_TILES)
        slots = min(readers * ORDERS_AHEAD // per_batch + IN_FLIGHT + 1, -(-total // self.batch_tiles) + 1)
        self.slot_bytes = self.batch_tiles * self.tile_bytes
        self.memory = SharedMemory(slots * self.slot_bytes)
        pixels = torch.frombuffer(self.memory.map, dtype=torch.uint8)
        self.ring = pixels.view(slots, self.batch_tiles, size_px, size_px, 3)
        self.free_slots = deque(range(slots))
        self.readers = start_readers(min(readers, -(-total // PART_TILES)), self.memory, total)
        self.plan = parts_of(works, self.batch_tiles, failed=lambda work: work.error is not None)
        self.batches: deque[TileBatch] = deque()  # planned, in order
        self.in_flight: deque[tuple[TileBatch, Ticket]] = deque()
        self.to_order: deque[tuple[TileBatch, int]] = deque()
        self.ordered: dict[int, tuple[TileBatch, int]] = {}
        self.orders = 0

    def run(self, progress: Callable[[int], None]) -> None:
        """Go through all slides; `progress(tiles)` after each batch."""
        with pinned(self.ring, self.engine.device, self.engine.reporter):
            try:
                while self._fill() or self.batches or self.in_flight:
                    self._receive()
                    while self._next_is_ready() and len(self.in_flight) < IN_FLIGHT:
                        self._start(self.batches.popleft())
                    while self.in_flight and (self.in_flight[0][1].ready() or self._must_wait_for_device()):
                        self._finish(progress)
            finally:
                self.readers.close()
                del self.ring
                self.memory.close()

    def _fill(self) -> bool:
        """Plan batches while slots are free, and hand out orders while readers are; whether orders are under way."""
        while self.free_slots:
            parts = next(self.plan, None)
            if parts is None:
                break
            batch = TileBatch(self.free_slots.popleft(), parts, waiting=len(parts))
            batch.count = sum(part.count for part in parts)
            self.batches.append(batch)
            self.to_order.extend((batch, index) for index in range(len(parts)))
        while self.to_order and self.readers.free():
            batch, index = self.to_order.popleft()
            part = batch.parts[index]
            self.orders += 1
            self.ordered[self.orders] = batch, index
            self.readers.order(part.order(self.orders, batch.slot * self.slot_bytes, self.tile_bytes))
        return bool(self.ordered)

    def _receive(self) -> None:
        """Take the readers' answers; wait for one where there is nothing else to do, or a little while the device works."""
        if not self.ordered:
            return
        idle = not self._next_is_ready()
        started = time.perf_counter()
        answers = self.readers.answers((DEVICE_POLL_S if self.in_flight else None) if idle else 0)
        if idle and not self.in_flight:
            self.profile.add("waiting for readers", time.perf_counter() - started)
        for answer in answers:
            batch, index = self.ordered.pop(answer["number"])
            batch.waiting -= 1
            self.profile.add("reading", answer["seconds"])
            if answer["missing"]:
                batch.missing[index] = answer["missing"]
            if answer["error"] is not None:
                state, reason = answer["error"]
                batch.parts[index].work.error = batch.parts[index].work.error or (state, reason)

    def _must_wait_for_device(self) -> bool:
        """Whether the device is all there is to wait for: its queue is full, or no reader works."""
        return (self._next_is_ready() and len(self.in_flight) == IN_FLIGHT) or not self.ordered

    def _next_is_ready(self) -> bool:
        return bool(self.batches) and not self.batches[0].waiting

    def _start(self, batch: TileBatch) -> None:
        stains = [np.tile(part.work.stain, (part.count, 1)) for part in batch.parts if part.work.stain is not None]
        ticket = self.engine.start(self.ring[batch.slot], batch.count, np.concatenate(stains) if stains else None)
        self.in_flight.append((batch, ticket))

    def _finish(self, progress: Callable[[int], None]) -> None:
        """Take the oldest batch off the device, free its slot and hand its vectors to the writer."""
        batch, ticket = self.in_flight.popleft()
        vectors = self.engine.finish(ticket)
        self.profile.add("encoder", ticket.device_seconds())
        self.free_slots.append(batch.slot)
        started = time.perf_counter()
        for piece in pieces_of(batch, vectors):
            self.writer.put(piece)
        self.profile.add("waiting for the writer", time.perf_counter() - started)
        progress(batch.count)


def pieces_of(batch: TileBatch, vectors: np.ndarray) -> Iterator[Piece]:
    """The batch's vectors by slide. A value that is not finite fails its slide."""
    for index, part in enumerate(batch.parts):
        kept = batch.kept(index)
        mine = vectors[part.offset + kept]
        if part.work.error is None and not np.isfinite(mine).all():
            part.work.error = "not_finite", not_finite(part, kept, mine)
        yield Piece(part.work, part.first + kept, mine, part.last)


def not_finite(part: TilePart, kept: np.ndarray, vectors: np.ndarray) -> str:
    """Which tile's vector is not finite, in words."""
    at = int(kept[np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]])
    x, y = part.work.tiling.coords[part.first + at].tolist()
    return f"the encoder gave a value that does not fit float16 for the tile at ({x}, {y}); try precision fp32"
