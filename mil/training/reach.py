"""The tiles of a call on the GPU: read where they lie, gathered, or copied from the host beside the GPU's work."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mil.training.packing import Places
from mil.training.pairs import Call, PairTable
from mil.training.sources import Source, centred


def upload(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A copy on the device for which the host does not wait."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Window:
    """Tiles of some places end to end, and where each of them begins."""

    places: tuple[int, ...]
    tiles: Tensor
    starts: np.ndarray


class Reach:
    """Hands out the tiles of one round's calls."""

    def __init__(
        self, source: Source, pairs: PairTable, places: Places, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.source, self.pairs, self.places, self.device, self.dtype = source, pairs, places, device, dtype
        self.starts, self.sizes = places.starts.numpy(), places.sizes.numpy()
        self.rows = None if places.rows is None else places.rows.numpy()
        self.drawn = None
        if source.tiles is not None:
            self.first = upload(self.starts[pairs.place], device)
            self.drawn = None if places.rows is None else upload(places.rows, device)
        self.size = upload(pairs.tiles, device)
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.window: Window | None = None
        self.coming: Window | None = None

    def tiles(self, call: Call) -> Tensor:
        """(tiles, width) of the place that all pairs share, or (pairs, tiles, width), each pair's last tile repeated."""
        if self.source.tiles is not None:
            store, drawn, first = self.source.tiles, self.drawn, self.first[call.first : call.stop]
            start = 0 if call.place is None else int(self.starts[call.place])
        else:
            window = self._arrived(call)
            store, drawn, start = window.tiles, None, 0
            if call.place is not None:
                return store
            places = self.pairs.place[call.first : call.stop]
            first = upload(window.starts[np.searchsorted(window.places, places)], self.device)
        if call.place is not None:
            whole = slice(start, start + call.tiles)
            return store[whole] if drawn is None else store.index_select(0, drawn[whole])
        last = self.size[call.first : call.stop].unsqueeze(-1) - 1
        rows = first.unsqueeze(-1) + torch.minimum(torch.arange(call.tiles, device=self.device), last)
        rows = rows.flatten() if drawn is None else drawn[rows.flatten()]
        return store.index_select(0, rows).view(-1, call.tiles, store.shape[1])

    def expect(self, call: Call | None) -> None:
        """Begin to copy the next call's tiles."""
        if self.source.tiles is None and call is not None and self._places(call) != self._held():
            self.coming = self._copied(self._places(call))

    def _held(self) -> tuple[int, ...]:
        return () if self.window is None else self.window.places

    def _places(self, call: Call) -> tuple[int, ...]:
        if call.place is not None:
            return (call.place,)
        return tuple(np.unique(self.pairs.place[call.first : call.stop]).tolist())

    def _arrived(self, call: Call) -> Window:
        wanted = self._places(call)
        if self.window is None or self.window.places != wanted:
            coming, self.coming, self.window = self.coming, None, None
            if coming is None or coming.places != wanted:
                coming = self._copied(wanted)
            if self.copies is not None:
                computing = torch.cuda.current_stream(self.device)
                computing.wait_stream(self.copies)
                coming.tiles.record_stream(computing)
            tiles = centred(coming.tiles, self.source.centre, self.dtype)
            self.window = Window(wanted, tiles, coming.starts)
        return self.window

    def _copied(self, places: tuple[int, ...]) -> Window:
        sizes = self.sizes[list(places)]
        ends = np.cumsum(sizes)
        width, dtype = self.source.shape
        with nullcontext() if self.copies is None else torch.cuda.stream(self.copies):
            tiles = torch.empty((int(ends[-1]), width), dtype=dtype, device=self.device)
            for place, size, end in zip(places, sizes.tolist(), ends.tolist(), strict=True):
                start = int(self.starts[place])
                rows = np.arange(start, start + size) if self.rows is None else self.rows[start : start + size]
                tiles[end - size : end].copy_(self.source.host_tiles(rows), non_blocking=True)
        return Window(places, tiles, ends - sizes)
