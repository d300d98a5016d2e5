"""Which tiles a step needs: bags end to end, learners in chunks, without arithmetic on padding.

A bag's place is its number in a table of starts and sizes; with sampled tiles there is a place for every bag and
epoch, and `rows` says which tiles were drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHORT = 16
"""Columns of the shortest steps (one small bag): the float32 values in one vector register."""


@dataclass(frozen=True)
class Places:
    """Place p holds `sizes[p]` tiles from `starts[p]` on, of `rows` if there are any, else of all tiles."""

    starts: Tensor
    sizes: Tensor
    rows: Tensor | None
    bags: int
    """Place p belongs to bag p modulo this."""

    @classmethod
    def of(cls, starts: np.ndarray, sizes: np.ndarray, rows: np.ndarray | None = None, bags: int = 0) -> "Places":
        """From int64 arrays (places,)."""
        drawn = None if rows is None else torch.from_numpy(rows)
        return cls(torch.from_numpy(starts), torch.from_numpy(sizes), drawn, bags or len(starts))

    def tiles(self, places: np.ndarray) -> int:
        """Number of tiles of some places together."""
        return int(self.sizes.numpy()[places].sum())


@dataclass(frozen=True)
class Packed:
    """The tiles of some places of each learner: tile numbers (learners, tiles), mask (learners, bags, tiles)."""

    rows: Tensor
    mask: Tensor
    owner: Tensor
    """Place that each tile belongs to (learners, tiles), and the tile's rank in it; padding has any."""
    rank: Tensor


def pack(numbers: Tensor, places: Places, length: int) -> Packed:
    """Places (learners, bags), -1 for none -> their tiles end to end in `length` columns; the rest belongs to no bag."""
    present = numbers >= 0
    chosen = numbers.clamp(min=0)
    sizes = places.sizes[chosen] * present
    ends = sizes.cumsum(-1)
    position = torch.arange(length, device=numbers.device).expand(len(numbers), length).contiguous()
    owner = torch.searchsorted(ends, position, right=True)  # (learners, tiles): which bag; `bags` beyond the last
    inside = owner.clamp(max=numbers.shape[1] - 1)
    starts = places.starts[chosen] - (ends - sizes)
    rows = starts.gather(-1, inside) + position
    real = owner < numbers.shape[1]
    rows = torch.where(real, rows, 0)
    if places.rows is not None:
        rows = places.rows[rows]
    mask = owner.unsqueeze(-2) == torch.arange(numbers.shape[1], device=numbers.device).unsqueeze(-1)
    return Packed(rows, mask, chosen.gather(-1, inside), position - (ends - sizes).gather(-1, inside))


def padded_length(tiles: int) -> int:
    """Columns for a step of `tiles` tiles: 16, or a multiple of 32; rounded up by at most a quarter from 100 tiles on.

    It depends on the learner's own tiles only, so that the same sums are formed whoever is trained beside it.
    """
    if tiles <= SHORT:
        return SHORT
    grain = max(32, 1 << max(0, tiles.bit_length() - 3))
    return max(1, -(-tiles // grain)) * grain


def chunks(largest: Sequence[int], budget: int) -> Iterator[slice]:
    """Neighbouring learners whose largest steps (tiles) fit into `budget` tiles together; at least one."""
    start = 0
    while start < len(largest):
        stop, widest = start + 1, largest[start]
        while stop < len(largest) and max(widest, largest[stop]) * (stop + 1 - start) <= budget:
            widest = max(widest, largest[stop])
            stop += 1
        yield slice(start, stop)
        start = stop


def runs(keys: Sequence[object]) -> Iterator[slice]:
    """Stretches of neighbours with equal keys; None belongs to no stretch."""
    start = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or keys[end] != keys[start]:
            if keys[start] is not None:
                yield slice(start, end)
            start = end


def pieces(bags: np.ndarray, sizes: np.ndarray, budget: int) -> list[np.ndarray]:
    """Consecutive bags of at most `budget` tiles together, at least one bag a piece."""
    parts: list[list[int]] = []
    held = 0
    for bag in bags.tolist():
        if not parts or held + sizes[bag] > budget:
            parts.append([])
            held = 0
        parts[-1].append(bag)
        held += int(sizes[bag])
    return [np.array(piece, np.int64) for piece in parts]
