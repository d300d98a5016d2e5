"""Which pairs of a learner and a bag a GPU computes in one call.

A call's rows are pairs: a learner and one bag of its batch. So a bag's size matters to nobody else, a bag that many learners
hold is read once for all of them, and what must fit into memory does not depend on how many bags a batch has. Bags that few
learners hold, or that are small, are gathered, sorted by size so that hardly anything is spent on padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

OCTAVE = 16
"""Classes of size per doubling; pairs of one class are gathered together."""
SPREAD = 1.1
"""A gathered call ends before a bag so many times the smallest, once it is worth its kernel launches."""


@dataclass(frozen=True)
class Cost:
    """Bytes on the card while a call runs."""

    tile: int
    """Per tile of a pair: what layers make of it and keep for the backward pass."""
    pair: int
    """Per pair: its learner's weights and their gradient."""
    worth: int
    """Tiles (pairs x tiles) from which computing a call takes longer than launching its kernels."""

    def most(self, tiles: int, budget: int) -> int:
        """Pairs of `tiles` tiles each that fit into `budget` bytes; at least one."""
        return max(1, budget // (tiles * self.tile + self.pair))


@dataclass(frozen=True)
class Call:
    """Pairs `first` up to `stop` of the table, laid out with `tiles` columns."""

    first: int
    stop: int
    tiles: int
    place: int | None
    """The place that all of them hold, so that its tiles are read in one go; none: several places, gathered."""

    def halves(self) -> tuple["Call", "Call"]:
        """The same pairs in two calls."""
        middle = (self.first + self.stop) // 2
        return Call(self.first, middle, self.tiles, self.place), Call(middle, self.stop, self.tiles, self.place)


@dataclass(frozen=True)
class PairTable:
    """All pairs of a round in the order in which they are computed: (pairs,) int64 each."""

    learner: np.ndarray
    place: np.ndarray
    slot: np.ndarray
    """Position of the bag in its learner's batch."""
    step: np.ndarray
    tiles: np.ndarray
    shared: np.ndarray
    """Whether the pair is computed with the others that hold its place (bool)."""

    @classmethod
    def of(cls, batches: Sequence[Sequence[np.ndarray]], sizes: np.ndarray, worth: int, whole: bool) -> "PairTable":
        """From each learner's batches of places, whose tiles are counted in `sizes`; `whole`: every place by itself."""
        counts = [[len(batch) for batch in plan] for plan in batches]
        flat = [batch for plan in batches for batch in plan]
        lengths = np.array([count for row in counts for count in row], np.int64)
        steps = np.concatenate([np.arange(len(plan)) for plan in batches]) if flat else lengths
        learner = np.repeat(np.repeat(np.arange(len(batches)), [len(plan) for plan in batches]), lengths)
        place = np.concatenate(flat).astype(np.int64) if flat else lengths
        step = np.repeat(steps, lengths)
        slot = np.arange(len(place)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tiles = sizes[place]
        _, group, held = np.unique(step * len(sizes) + place, return_inverse=True, return_counts=True)
        shared = (held[group] * tiles >= worth) | whole
        kind = np.where(shared, place, np.log2(np.maximum(tiles, 1)) * OCTAVE // 1).astype(np.int64)
        again = _rank(step, shared, kind, learner)
        order = np.lexsort((learner, again, kind, ~shared, step))
        return cls(*(part[order] for part in (learner, place, slot, step, tiles, shared)))

    def steps(self) -> int:
        """Number of steps."""
        return int(self.step[-1]) + 1 if len(self.step) else 0

    def calls(self, step: int, cost: Cost, budget: int) -> Iterator[Call]:
        """The calls of a step, each within `budget` bytes."""
        at, end = np.searchsorted(self.step, [step, step + 1]).tolist()
        while at < end:
            stop = self._shared_stop(at, end) if self.shared[at] else self._gathered_stop(at, end, cost, budget)
            tiles = int(self.tiles[at:stop].max())
            place = int(self.place[at]) if self.shared[at] else None
            most = cost.most(tiles, budget)
            parts = -(-(stop - at) // most)
            for part in np.array_split(np.arange(at, stop), parts):
                yield Call(int(part[0]), int(part[-1]) + 1, tiles, place)
            at = stop

    def _shared_stop(self, at: int, end: int) -> int:
        others = np.flatnonzero((self.place[at:end] != self.place[at]) | ~self.shared[at:end])
        return at + int(others[0]) if len(others) else end

    def _gathered_stop(self, at: int, end: int, cost: Cost, budget: int) -> int:
        least = most = int(self.tiles[at])
        stop = at + 1
        while stop < end:
            size = int(self.tiles[stop])
            least, widest = min(least, size), max(most, size)
            full = stop + 1 - at > cost.most(widest, budget)
            if full or (widest > SPREAD * least and (stop - at) * most >= cost.worth):
                break
            most, stop = widest, stop + 1
        return stop

    def stretches(self, call: Call) -> list[slice]:
        """Neighbouring pairs of a call (counted from its first one) among which no learner stands twice."""
        cuts = np.flatnonzero(np.diff(self.learner[call.first : call.stop]) <= 0) + 1
        ends = [0, *cuts.tolist(), call.stop - call.first]
        return [slice(start, stop) for start, stop in pairwise(ends)]


def _rank(*keys: np.ndarray) -> np.ndarray:
    """How many earlier rows have the same keys."""
    columns = dict(enumerate(keys))
    return pd.DataFrame(columns).groupby(list(columns), sort=False).cumcount().to_numpy()
