"""Which learners take a step together, and how wide it is laid out: alike ones side by side, few calls for many models.

A learner's shapes follow from its own bags alone, so that the same sums are formed whoever is trained beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mil.training.packing import chunks, padded_length, runs

GRAIN = 32
"""Bags per step are padded to a multiple of this: the float32 values in two vector registers. The CPU rounds the scalar
remainder of a row differently, and a model must not depend on its neighbours."""


class Shape(NamedTuple):
    """How a step is laid out: places for bags, columns for tiles."""

    bags: int
    columns: int


class Batch(NamedTuple):
    """A batch of every learner."""

    numbers: Tensor
    """Places (learners, bags), -1 for none."""
    columns: int
    """Length of the tile axis."""

    def bags(self, count: int) -> Tensor:
        """Number of the bag at each place, of `count` bags; any number where there is none."""
        return self.numbers.clamp(min=0) % count

    @classmethod
    def of(cls, batches: Sequence[np.ndarray], shape: Shape) -> "Batch":
        """Lay out a batch of every learner."""
        numbers = np.full((len(batches), shape.bags), -1, np.int64)
        for row, batch in enumerate(batches):
            numbers[row, : len(batch)] = batch
        return cls(torch.from_numpy(numbers), shape.columns)


@dataclass(frozen=True)
class Limits:
    """What a CPU takes at once."""

    budget: int
    """Tiles of a chunk of learners."""
    small: int
    """Tiles of a step whose calls cost more than its arithmetic, so that it may as well be padded to look like others."""


@dataclass(frozen=True)
class StepGroups:
    """The batches of some learners and their shapes."""

    batches: Sequence[Sequence[np.ndarray]]
    shapes: Sequence[Sequence[Shape]]
    small: Sequence[bool]
    limits: Limits

    @classmethod
    def of(cls, batches: Sequence[Sequence[np.ndarray]], sizes: np.ndarray, limits: Limits) -> "StepGroups":
        """From each learner's batches of places, whose tiles are counted in `sizes`."""
        tiles = [[int(sizes[batch].sum()) for batch in plan] for plan in batches]
        small = [max(counts, default=0) <= limits.small for counts in tiles]
        shapes = [
            _small_shapes(*pair) if fit else _shapes(*pair, limits)
            for fit, pair in zip(small, zip(batches, tiles, strict=True), strict=True)
        ]
        return cls(batches, shapes, small, limits)

    def order(self) -> list[int]:
        """The learners that have something to do; those alike beside one another where that saves many calls."""
        busy = [k for k, shapes in enumerate(self.shapes) if shapes]
        alike = sorted(busy, key=lambda k: (self.shapes[k], len(self.shapes[k])) if self.small[k] else ([], 0))
        return alike if 4 * self.chosen(alike).calls() < 3 * self.chosen(busy).calls() else busy

    def calls(self) -> int:
        """Stretches of learners that take a step together, over all steps."""
        return sum(1 for chunk, number in self.one_by_one() for _ in self.alike(chunk, number))

    def chosen(self, order: Sequence[int]) -> "StepGroups":
        """The steps of some learners."""
        batches, shapes = [self.batches[k] for k in order], [self.shapes[k] for k in order]
        return StepGroups(batches, shapes, [self.small[k] for k in order], self.limits)

    def chunks(self) -> list[tuple[slice, int]]:
        """Neighbours that fit into the budget together, and how many steps they have."""
        parts = chunks([self.widest(k) for k in range(len(self.shapes))], self.limits.budget)
        return [(part, max((len(shapes) for shapes in self.shapes[part]), default=0)) for part in parts]

    def one_by_one(self) -> Iterator[tuple[slice, int]]:
        """The first step of every chunk, then the second: all models use a bag while it is here."""
        parts = self.chunks()
        for number in range(max((count for _, count in parts), default=0)):
            yield from ((part, number) for part, count in parts if number < count)

    def alike(self, chunk: slice, number: int) -> Iterator[tuple[slice, Shape]]:
        """Neighbours of a chunk whose step `number` has the same shape, so that no learner is padded to another's size."""
        keys: list[object] = []
        for shapes in self.shapes[chunk]:
            shape = shapes[number] if number < len(shapes) else None
            alone = shape is not None and 2 * shape.columns > self.limits.budget  # takes its steps by itself
            keys.append((shape, len(keys)) if alone else shape)
        for part in runs(keys):
            first = part.start + chunk.start
            yield slice(first, part.stop + chunk.start), self.shapes[first][number]

    def widest(self, learner: int) -> int:
        """Columns of a learner's largest step."""
        return max((shape.columns for shape in self.shapes[learner]), default=0)

    def tiles_a_call(self) -> int:
        """Columns of the largest step of neighbours that are alike."""
        return max(
            self.widest(part.start) * (part.stop - part.start if self.small[part.start] else 1)
            for part, _ in self.chunks()
        )


def _small_shapes(batches: Sequence[np.ndarray], tiles: Sequence[int]) -> list[Shape]:
    """All steps as wide as the largest; a last one of few bags half or a quarter ... of that."""
    if not batches:
        return []
    bags, widest = _shape(max(map(len, batches)), max(tiles))
    shapes = []
    for count in tiles:
        columns = widest
        while columns >= 2 * count and columns % (2 * GRAIN) == 0:
            columns //= 2
        shapes.append(Shape(bags, columns))
    return shapes


def _shapes(batches: Sequence[np.ndarray], tiles: Sequence[int], limits: Limits) -> list[Shape]:
    """Each step as wide as it is."""
    return [shape_of(len(batch), count, limits) for batch, count in zip(batches, tiles, strict=True)]


def shape_of(bags: int, tiles: int, limits: Limits) -> Shape:
    """The shape of a step by itself; exact for a learner that has no neighbours, at least two bags (`layers.NARROW`)."""
    return Shape(max(2, bags), tiles) if 2 * tiles > limits.budget else _shape(bags, tiles)


def _shape(bags: int, tiles: int) -> Shape:
    return Shape(-(-bags // GRAIN) * GRAIN, padded_length(tiles))
