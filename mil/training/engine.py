"""Many small models over the same bags, trained together along one leading axis of models.

A learner is one model at one site (or at all of them): a row of parameters, a row of optimiser state, its own bags and
its own random streams, so that what it becomes does not depend on what is trained beside it. Learners are taken in
chunks that fit the cache (CPU); a chunk goes through all steps of a round before the next one starts. A step's bags lie
end to end, so that no arithmetic is spent on padding; the mask says which tile is whose.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mil.config import TrainingSpec
from mil.endpoints import Binary
from mil.models import Head
from mil.models.head import Output
from mil.rng import seed_of
from mil.training.layout import Layout
from mil.training.optimisers import OPTIMISERS, OptimiserState
from mil.training.store import FeatureStore

FLOATS_A_CHUNK = 2**20
"""Gathered tile numbers a chunk of learners may hold at once: 4 MB, a share of a CPU's last-level cache."""


@dataclass
class Learners:
    """Rows of all learners: parameters (learners, size) and the buffers and settings that go with them."""

    rows: Tensor
    mean: Tensor
    deviation: Tensor
    lr: Tensor
    decay: Tensor

    def __getitem__(self, chosen: slice) -> "Learners":
        return Learners(*(getattr(self, name)[chosen] for name in ("rows", "mean", "deviation", "lr", "decay")))


@dataclass(frozen=True)
class Batch:
    """One step of a chunk: tiles (learners, tiles, width), mask (learners, bags, tiles), bag numbers, -1 for none."""

    tiles: Tensor
    mask: Tensor
    bags: np.ndarray


class Engine:
    """Trains and applies one kind of head on one store."""

    def __init__(
        self, head: Head, endpoint: Binary, training: TrainingSpec, store: FeatureStore, targets: np.ndarray
    ) -> None:
        self.head, self.endpoint, self.training = head, endpoint, training
        self.store = store
        self.targets = torch.from_numpy(targets)
        self.layout = Layout(head.initial(np.random.default_rng(0)))
        self.optimise = OPTIMISERS[training.optimiser]

    def train(
        self, learners: Learners, state: OptimiserState, plans: Sequence[Sequence[np.ndarray]], streams: Sequence[int]
    ) -> np.ndarray:
        """Take every learner through its plan (a list of batches of bag numbers), in place; mean loss of each (NaN: no step).

        `streams` are the learners' dropout seeds of this round.
        """
        losses = np.full(len(plans), np.nan)
        for chunk in self._chunks(plans):
            total, seen = np.zeros((2, chunk.stop - chunk.start))
            for step in range(max((len(plan) for plan in plans[chunk]), default=0)):
                for part in _runs([len(plan) > step for plan in plans[chunk]], chunk.start):
                    batch = self._batch(learners[part], [plan[step] for plan in plans[part]])
                    keys = torch.tensor([seed_of(stream, step) & 0xFFFFFFFF for stream in streams[part]])
                    loss = self._step(learners[part], state[part], batch, keys)
                    here = slice(part.start - chunk.start, part.stop - chunk.start)
                    total[here] += loss.numpy().sum(1)
                    seen[here] += (batch.bags >= 0).sum(1)
            losses[chunk] = np.divide(total, seen, out=np.full(len(total), np.nan), where=seen > 0)
        return losses

    @torch.no_grad()
    def logits(self, learners: Learners, bags: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Logits (bags, outputs) of every learner for its own bags, float32."""
        return [np.concatenate([logits for logits, _ in found]) for found in self._apply(learners, bags)]

    @torch.no_grad()
    def attention(self, learners: Learners, bags: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Attention (tiles,) of every learner for each of its own bags; equal weights for a head without."""
        return [[one for _, many in found for one in many] for found in self._apply(learners, bags)]

    def _apply(self, learners: Learners, bags: Sequence[np.ndarray]) -> list[list[tuple[np.ndarray, list[np.ndarray]]]]:
        plans = [_pieces(own, self.store.sizes, FLOATS_A_CHUNK // self.store.width) for own in bags]
        found: list[list[tuple[np.ndarray, list[np.ndarray]]]] = [
            [(np.empty((0, self.endpoint.outputs), np.float32), [])] for _ in plans
        ]
        for chunk in self._chunks(plans):
            for step in range(max((len(plan) for plan in plans[chunk]), default=0)):
                for part in _runs([len(plan) > step for plan in plans[chunk]], chunk.start):
                    batch = self._batch(learners[part], [plan[step] for plan in plans[part]])
                    output = self.head(self.layout.views(learners.rows[part]), batch.tiles, batch.mask)
                    for row, number in enumerate(range(part.start, part.stop)):
                        found[number].append(self._unpacked(output, batch, row))
        return found

    def _unpacked(self, output: Output, batch: Batch, row: int) -> tuple[np.ndarray, list[np.ndarray]]:
        numbers = batch.bags[row][batch.bags[row] >= 0]
        logits = output.logits[row, : len(numbers)].numpy()
        ends = np.cumsum(self.store.sizes[numbers])
        attention = []
        for place, (number, end) in enumerate(zip(numbers, ends, strict=True)):
            size = int(self.store.sizes[number])
            if output.attention is None:
                attention.append(np.full(size, 1 / size, np.float32))
            else:
                attention.append(output.attention[row, place, end - size : end].numpy().copy())
        return logits, attention

    def _step(self, learners: Learners, state: OptimiserState, batch: Batch, keys: Tensor) -> Tensor:
        """One optimiser step of the chunk on its batch; the loss of every bag (learners, bags), 0 where there is none."""
        weights = {name: view.detach().requires_grad_() for name, view in self.layout.views(learners.rows).items()}
        output = self.head(weights, batch.tiles, batch.mask, keys)
        present = torch.from_numpy(batch.bags >= 0)
        targets = self.targets[torch.from_numpy(np.maximum(batch.bags, 0))]
        losses = self.endpoint.losses(output.logits, targets) * present
        gradients = torch.autograd.grad((losses.sum(1) / present.sum(1)).sum(), list(weights.values()))
        gradient = torch.cat([part.flatten(1) for part in gradients], dim=1)
        with torch.no_grad():
            self.optimise(learners.rows, gradient, state, learners.lr, learners.decay)
        return losses.detach()

    def _batch(self, learners: Learners, bags: Sequence[np.ndarray]) -> Batch:
        sizes, starts = self.store.sizes, self.store.starts
        longest = max(int(sizes[own].sum()) for own in bags)
        numbers = np.full((len(bags), max(map(len, bags))), -1)
        rows = np.zeros((len(bags), longest), np.int64)
        owner = np.full((len(bags), longest), -1, np.int32)
        for place, own in enumerate(bags):
            numbers[place, : len(own)] = own
            count = int(sizes[own].sum())
            ends = np.cumsum(sizes[own])
            rows[place, :count] = np.repeat(starts[own] - ends + sizes[own], sizes[own]) + np.arange(count)
            owner[place, :count] = np.repeat(np.arange(len(own)), sizes[own])
        tiles = self.store.tiles.index_select(0, torch.from_numpy(rows.ravel())).view(len(bags), longest, -1)
        tiles.sub_(learners.mean[:, None]).div_(learners.deviation[:, None])
        mask = torch.from_numpy(owner)[:, None] == torch.arange(numbers.shape[1], dtype=torch.int32)[:, None]
        return Batch(tiles, mask, numbers)

    def _chunks(self, plans: Sequence[Sequence[np.ndarray]]) -> Iterator[slice]:
        """Neighbouring learners whose largest batches fit into `FLOATS_A_CHUNK` together; at least one."""
        largest = [
            max((int(self.store.sizes[batch].sum()) for batch in plan), default=0) * self.store.width for plan in plans
        ]
        start = 0
        while start < len(plans):
            stop, widest = start + 1, largest[start]
            while stop < len(plans) and max(widest, largest[stop]) * (stop + 1 - start) <= FLOATS_A_CHUNK:
                widest = max(widest, largest[stop])
                stop += 1
            yield slice(start, stop)
            start = stop


def _runs(active: Sequence[bool], first: int) -> Iterator[slice]:
    """Stretches of neighbours that are active, counted from `first`."""
    start = None
    for place, is_active in enumerate([*active, False]):
        if is_active and start is None:
            start = place
        elif not is_active and start is not None:
            yield slice(first + start, first + place)
            start = None


def _pieces(bags: np.ndarray, sizes: np.ndarray, tiles: int) -> list[np.ndarray]:
    """Consecutive bags of at most `tiles` tiles together, at least one bag a piece."""
    pieces: list[list[int]] = []
    held = 0
    for bag in bags:
        if not pieces or held + sizes[bag] > tiles:
            pieces.append([])
            held = 0
        pieces[-1].append(int(bag))
        held += int(sizes[bag])
    return [np.array(piece) for piece in pieces]
