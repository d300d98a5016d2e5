"""Where tiles lie, and how some of them get to the device: resident, from pinned host memory, or streamed from files.

All three hand out the same numbers; which one serves is a matter of size (see `FeatureStore.source`).
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
from mil.features.device import register
from mil.progress import Reporter, quiet

Centre = tuple[Tensor, Tensor]
"""Mean and deviation (width,) of all tiles: what bf16 tiles are centred by, so that rounding is relative to their spread."""


class Source:
    """Base of the sources: all tiles of a store, numbered end to end."""

    tiles: Tensor | None = None
    """All of them, if they are in the device's memory."""
    where: str
    """For the log."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, centre: Centre | None) -> None:
        self.shape = (width, dtype)
        """Width, and type as stored."""
        self.centre: Centre | None = None if centre is None else (centre[0].to(device), centre[1].to(device))
        """On a GPU: what tiles are centred and divided by when they come there."""

    def host_tiles(self, rows: np.ndarray) -> Tensor:
        """The tiles of `rows` (tiles,) int64, rising, in the host's memory."""
        raise NotImplementedError

    def take(self, rows: Tensor) -> Tensor:
        """The tiles of `rows` (tiles,) int64 on the device (tiles, width), in the type they were stored in."""
        raise NotImplementedError

    def expect(self, rows: Tensor | None) -> None:
        """What `take` will be asked for next; none: nothing is known."""


class Ahead(Source):
    """A source that fetches the next tiles on a thread of its own while the device works on the last ones."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, centre: Centre | None) -> None:
        super().__init__(width, dtype, device, centre)
        self.pool = ThreadPoolExecutor(1)
        self.expected: tuple[Tensor, Future[Tensor]] | None = None

    def fetch(self, rows: Tensor) -> Tensor:
        """As `take`; one call at a time."""
        return self.host_tiles(rows.numpy())

    def take(self, rows: Tensor) -> Tensor:
        """What was expected, when it is there; anything else, when the thread is free."""
        expected, self.expected = self.expected, None
        if expected is not None and torch.equal(expected[0], rows):
            return expected[1].result()
        return self.pool.submit(self.fetch, rows).result()

    def expect(self, rows: Tensor | None) -> None:
        """Begin to fetch."""
        self.expected = None if rows is None else (rows, self.pool.submit(self.fetch, rows))


CHUNK = 2**16
"""Tiles that are widened at a time on their way to a GPU."""
WIDENED = 2**30
"""Bytes up to which a CPU holds tiles in fp32, so that they need not be widened every time they are used."""


class Resident(Source):
    """Tiles in the device's own memory, in the type they were stored in, or in fp32 where that is little."""

    where = "in the device's memory"

    def __init__(self, tiles: Tensor, device: torch.device, centre: Centre | None = None) -> None:
        super().__init__(tiles.shape[1], tiles.dtype, device, centre)
        if centre is None:
            small = device.type == "cpu" and 4 * tiles.numel() <= WIDENED
            self.tiles = tiles.to(device, torch.float32 if small else tiles.dtype)
            return
        self.tiles = torch.empty(tiles.shape, dtype=torch.bfloat16, device=device)
        for start in range(0, len(tiles), CHUNK):
            part = tiles[start : start + CHUNK].to(device)
            self.tiles[start : start + CHUNK] = centred(part, self.centre, torch.bfloat16)

    def take(self, rows: Tensor) -> Tensor:
        """Gathered on the device."""
        assert self.tiles is not None
        return self.tiles.index_select(0, rows.to(self.tiles.device))


class Pinned(Ahead):
    """Tiles in host memory, registered so that the GPU can copy from it while it computes."""

    where = "in the host's memory"

    def __init__(
        self, tiles: Tensor, device: torch.device, centre: Centre | None = None, reporter: Reporter | None = None
    ) -> None:
        super().__init__(tiles.shape[1], tiles.dtype, device, centre)
        self.host = tiles
        if device.type == "cuda":
            register(tiles, reporter or quiet())  # where they lie: a pinned copy would be a second one

    def fetch(self, rows: Tensor) -> Tensor:
        """Gathered: a copy, which the reader may change."""
        return self.host.index_select(0, rows)

    def host_tiles(self, rows: np.ndarray) -> Tensor:
        """A view where the rows are neighbours."""
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            return self.host[first : last + 1]
        return self.host.index_select(0, torch.from_numpy(rows))


class Streamed(Ahead):
    """Tiles in files, read slide by slide when they are needed; the slides used last are kept up to `memory` bytes."""

    where = "streamed from their files"

    def __init__(
        self,
        files: Sequence[Path],
        sizes: np.ndarray,
        width: int,
        dtype: str,
        memory: int,
        device: torch.device,
        centre: Centre | None = None,
    ) -> None:
        super().__init__(width, torch.from_numpy(np.empty(0, dtype)).dtype, device, centre)
        self.files, self.sizes, self.width, self.dtype = list(files), sizes, width, dtype
        self.memory = memory
        self.ends = np.cumsum(sizes)
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.held = self.peak = 0

    def host_tiles(self, rows: np.ndarray) -> Tensor:
        """Each slide's part in one go."""
        wanted = np.empty((len(rows), self.width), self.dtype)
        file_of = np.searchsorted(self.ends, rows, side="right")
        for file in np.unique(file_of).tolist():
            mine, slide = file_of == file, self._slide(file)
            wanted[mine] = slide[rows[mine] - (self.ends[file] - self.sizes[file])]
        return torch.from_numpy(wanted)

    def _slide(self, file: int) -> np.ndarray:
        if file in self.kept:
            self.kept.move_to_end(file)
            return self.kept[file]
        tiles = read_tiles(self.files[file])
        while self.kept and self.held + tiles.nbytes > self.memory:
            _, oldest = self.kept.popitem(last=False)
            self.held -= oldest.nbytes
        self.kept[file] = tiles
        self.held += tiles.nbytes
        self.peak = max(self.peak, self.held)
        return tiles


def centred(tiles: Tensor, centre: Centre | None, dtype: torch.dtype) -> Tensor:
    """Tiles on a GPU in the type of the products, centred and scaled by `centre`; without one as they are."""
    return tiles if centre is None else ((tiles.float() - centre[0]) / centre[1]).to(dtype)


def read_tiles(path: Path) -> np.ndarray:
    """The features (tiles, width) of one slide's file, finite."""
    (features,) = hdf5.read(path, "features")
    if features.ndim != 2:
        raise CorruptFile(f"{path}: features have {features.ndim} axes, not 2 (tiles, width); extract the slide again")
    if not np.isfinite(features).all():
        raise CorruptFile(f"{path}: features hold NaN or infinity; extract the slide again")
    return features
