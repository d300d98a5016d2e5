"""What the tests of a card count: waits of the host by the line of `mil`, bytes on the card; of a real card, what PyTorch says of it."""

import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import mil

PACKAGE = f"{Path(mil.__file__).parent}/"
BLOCK_BYTES = 512  # PyTorch's allocator rounds up to it


class Log:
    """What the host waited for, and the bytes on the card."""

    def __init__(self, total_bytes: int) -> None:
        self.waits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.total_bytes, self.live_bytes, self.peak_bytes = total_bytes, 0, 0
        self.allocations = 0
        self.fails_at: int | None = None
        """Number of the allocation that fails though there is memory; the next one succeeds."""
        self.failure = "CUDA out of memory"
        self._held: dict[int, int] = {}

    def wait(self, why: str) -> None:
        """Count a call that blocks the host."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        line = f"{frames[-1].filename.removeprefix(PACKAGE)}:{frames[-1].lineno}" if frames else "test"
        self.waits[f"{why} @ {line}"] += 1

    def hold(self, values: torch.Tensor) -> None:
        """Count the memory of a tensor on the card; an error where the card is full."""
        storage = values.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self.allocations += 1
        if self.allocations == self.fails_at:
            kind = torch.cuda.OutOfMemoryError if "out of memory" in self.failure else RuntimeError  # cuBLAS and cuDNN
            raise kind(f"{self.failure} (simulated card)")
        if self.live_bytes + size > self.total_bytes:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes (simulated card)")
        self._held[key] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live_bytes -= self._held.pop(key, 0)


class RealLog(Log):
    """Of a real card: PyTorch's warnings of calls that wait, and its allocator's numbers. Not yet run on one."""

    live_bytes = property(lambda _: torch.cuda.memory_allocated(), lambda _, value: None)
    peak_bytes = property(lambda _: torch.cuda.max_memory_allocated(), lambda *_: torch.cuda.reset_peak_memory_stats())
    total_bytes = property(lambda self: self._total, lambda self, value: self._limit(value))

    def _limit(self, value: int) -> None:
        real = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, value / real))
        self._total = min(value, real)

    def warned(self, _: Any, __: Any, filename: str, line: int, *___: Any) -> None:
        """In place of `warnings.showwarning`."""
        place = f"{filename.removeprefix(PACKAGE)}:{line}" if filename.startswith(PACKAGE) else "test"
        self.waits[f"wait @ {place}"] += 1


@contextmanager
def real_card(total_bytes: int) -> Iterator[Log]:
    """The card of this machine, as `simulated_card`."""
    log = RealLog(total_bytes)
    synchronize = torch.cuda.Event.synchronize

    def waited(event: torch.cuda.Event) -> None:
        log.wait("event")
        synchronize(event)

    with warnings.catch_warnings(), mock.patch.object(torch.cuda.Event, "synchronize", waited):
        warnings.simplefilter("always")
        warnings.showwarning = log.warned
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield log
        finally:
            torch.cuda.set_sync_debug_mode("default")
            log.total_bytes = 2**62
