"""Where tiles lie, and how some of them get to the device: resident, from pinned host memory, or streamed from files.

All three hand out the same numbers; which one serves is a matter of size (see `choose`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mil import hdf5
from mil.errors import CorruptFile


class Source:
    """Base of the sources: all tiles of a store, numbered end to end."""

    tiles: Tensor | None = None
    """All of them, if they are in the device's memory."""
    where: str
    """For the log."""

    def take(self, rows: Tensor) -> Tensor:
        """The tiles of `rows` (tiles,) int64 on the device (tiles, width), in the type they were stored in."""
        raise NotImplementedError

    def expect(self, rows: Tensor | None) -> None:
        """What `take` will be asked for next; none: nothing is known."""


class Ahead(Source):
    """A source that fetches the next tiles on a thread of its own while the device works on the last ones."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.expected: tuple[Tensor, Future[Tensor]] | None = None

    def fetch(self, rows: Tensor) -> Tensor:
        """As `take`; one call at a time."""
        raise NotImplementedError

    def take(self, rows: Tensor) -> Tensor:
        """What was expected, when it is there; anything else, when the thread is free."""
        expected, self.expected = self.expected, None
        if expected is not None and torch.equal(expected[0], rows):
            return expected[1].result()
        return self.pool.submit(self.fetch, rows).result()

    def expect(self, rows: Tensor | None) -> None:
        """Begin to fetch."""
        self.expected = None if rows is None else (rows, self.pool.submit(self.fetch, rows))


WIDENED = 2**30
"""Bytes up to which a CPU holds tiles in fp32, so that they need not be widened every time they are used."""


class Resident(Source):
    """Tiles in the device's own memory, in the type they were stored in, or in fp32 where that is little."""

    where = "in the device's memory"

    def __init__(self, tiles: Tensor, device: torch.device) -> None:
        small = device.type == "cpu" and 4 * tiles.numel() <= WIDENED
        self.tiles = tiles.to(device, torch.float32 if small else tiles.dtype)

    def take(self, rows: Tensor) -> Tensor:
        """Gathered on the device."""
        assert self.tiles is not None
        return self.tiles.index_select(0, rows.to(self.tiles.device))


class Pinned(Ahead):
    """Tiles in host memory that the device can copy from without help; gathered on the host."""

    where = "in the host's memory"

    def __init__(self, tiles: Tensor, device: torch.device) -> None:
        super().__init__()
        self.host = tiles.pin_memory() if device.type == "cuda" else tiles
        self.device = device

    def fetch(self, rows: Tensor) -> Tensor:
        """Gathered into pinned memory, copied beside the device's own work."""
        pinned = self.device.type == "cuda"
        wanted = torch.empty((len(rows), self.host.shape[1]), dtype=self.host.dtype, pin_memory=pinned)
        torch.index_select(self.host, 0, rows.cpu(), out=wanted)
        return wanted.to(self.device, non_blocking=True)


class Streamed(Ahead):
    """Tiles in files, read slide by slide when they are needed; the slides used last are kept up to `memory` bytes."""

    where = "streamed from their files"

    def __init__(
        self, files: Sequence[Path], sizes: np.ndarray, width: int, dtype: str, memory: int, device: torch.device
    ) -> None:
        super().__init__()
        self.files, self.sizes, self.width, self.dtype = list(files), sizes, width, dtype
        self.memory, self.device = memory, device
        self.ends = np.cumsum(sizes)
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.held = self.peak = self.read = 0

    def fetch(self, rows: Tensor) -> Tensor:
        """Each slide's part in one go."""
        numbers = rows.cpu().numpy()
        wanted = np.empty((len(numbers), self.width), self.dtype)
        file_of = np.searchsorted(self.ends, numbers, side="right")
        for file in np.unique(file_of).tolist():
            mine, slide = file_of == file, self._slide(file)
            wanted[mine] = slide[numbers[mine] - (self.ends[file] - self.sizes[file])]
        return torch.from_numpy(wanted).to(self.device)

    def _slide(self, file: int) -> np.ndarray:
        if file in self.kept:
            self.kept.move_to_end(file)
            return self.kept[file]
        tiles = read_tiles(self.files[file])
        self.read += tiles.nbytes
        while self.kept and self.held + tiles.nbytes > self.memory:
            _, oldest = self.kept.popitem(last=False)
            self.held -= oldest.nbytes
        self.kept[file] = tiles
        self.held += tiles.nbytes
        self.peak = max(self.peak, self.held)
        return tiles


def read_tiles(path: Path) -> np.ndarray:
    """The features (tiles, width) of one slide's file, finite."""
    (features,) = hdf5.read(path, "features")
    if features.ndim != 2:
        raise CorruptFile(f"{path}: features have {features.ndim} axes, not 2 (tiles, width); extract the slide again")
    if not np.isfinite(features).all():
        raise CorruptFile(f"{path}: features hold NaN or infinity; extract the slide again")
    return features
