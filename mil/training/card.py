"""A round on a GPU: everything it needs is uploaded once, then steps of calls of pairs, none of which waits for the host.

The scaling of features is folded into the layers that read tiles (W / sd, b - W mean / sd), so that a bag is read as it lies in
memory. A learner's gradient is the sum over its pairs; it is unfolded before the optimiser's step. Learners with more steps come
first, so that those that still train are always the first rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.features.accelerate import cached_compile
from mil.models.head import Head, Inputs, Output
from mil.progress import Reporter, quiet
from mil.training.data import Data, Method
from mil.training.dropout import combined
from mil.training.fitting import Fitting
from mil.training.folding import Folding
from mil.training.layout import RowLayout
from mil.training.learners import Learners, Plan
from mil.training.lessons import Given, Lessons
from mil.training.optimisers import OPTIMISERS, OptimiserState
from mil.training.packing import Places
from mil.training.pairs import Call, Cost, PairTable
from mil.training.reach import Reach, upload

WORTH = 2**35
"""Multiply-adds of a call's forward pass that take a GPU some three times as long as the host takes to launch the call's kernels."""
COMPILE_FROM = 3e15
"""Multiply-adds (tiles x weights) of a training from which compiling its step saves time: a minute of compiling, against half of
the time of uncompiled steps at an assumed 150 TFLOP/s. Not measured on a GPU."""
MADE, READ, DROPPED = 5, 3, 3
"""Copies of the numbers that layers make of a tile, of the tile, and of the numbers that dropout sees, while a call runs."""
UPDATING = 4
"""Copies of all models' weights, in fp32, that a step needs besides its calls: their sum of gradients, the folded weights, what
the optimiser computes."""
LARGEST = 2**31
"""Numbers that layers make of the tiles of one call; larger calls gain nothing."""


@dataclass
class Card:
    """Trains and applies one kind of head on a GPU. On a CPU it gives the same models within rounding, for tests."""

    head: Head
    endpoint: Endpoint
    data: Data
    method: Method
    device: torch.device
    layout: RowLayout
    compiled: bool = False
    reporter: Reporter = field(default_factory=quiet)

    def __post_init__(self) -> None:
        item, width = self.method.dtype.itemsize, self.data.width
        made = sum(shape[0] for shape in self.layout.shapes.values() if len(shape) == 2)
        kept = self.head.kept + MADE * made + READ * width + (DROPPED * made if self.head.dropout else 0)
        weights = self.layout.size * (2 * item + 2 * 4)
        self.cost = Cost(item * kept + 64, weights + 4096, WORTH // max(1, self.layout.size))
        largest = self.cost.tile * max(1, LARGEST // max(width, made))
        self.fitting = Fitting(self.cost, largest, self.device, self.reporter)
        self.folding = Folding(self.head, self.layout, self.data.source.centre, self.method.dtype)
        self.output: Callable[..., tuple[Tensor, Tensor | None]] = self._output
        self.optimise: Callable[..., None] = OPTIMISERS[self.method.optimiser]
        if self.compiled:
            self.output, self.optimise = cached_compile(self._output), cached_compile(self.optimise)
            self.fitting.give_up = self._eager

    def train(
        self, learners: Learners, state: OptimiserState | None, plans: Sequence[Plan], places: Places
    ) -> np.ndarray:
        """Take every learner through its plan, in place; the mean loss over its bags (NaN: it had none).

        Without a `state` all begin afresh. Where the GPU's memory is too small for all learners, it takes half of them at a time.
        """
        losses = np.full(len(plans), np.nan, np.float32)
        order = sorted((k for k, plan in enumerate(plans) if plan.batches), key=lambda k: -len(plans[k].batches))
        if not order:
            return losses
        begun = None
        try:
            begun = self._begun(learners, state, plans, order, places)
        except RuntimeError as error:
            self.fitting.relieve(error, len(order), "models")
        if begun is None:  # here, where what the error held is free
            for half in (slice(len(plans) // 2), slice(len(plans) // 2, None)):
                mine = None if state is None else state[half]
                losses[half] = self.train(learners[half], mine, plans[half], places)
            return losses
        where, picked, its, pairs, lessons, reach, budget = begun
        steps = [list(pairs.calls(number, self.cost, budget)) for number in range(pairs.steps())]
        following = dict(pairwise(call for calls in steps for call in calls))
        for number, calls in enumerate(steps):
            active = sum(len(plans[k].batches) > number for k in order)
            step = _Step(self, picked[:active], pairs, lessons, reach, following)
            gradient = step.gradient(calls)
            self._update(picked[:active], its[:active], gradient)
        if where is not None:
            learners.rows[where] = picked.rows
            if state is not None:
                state.put(where, its)
        losses[order] = lessons.means(len(order))
        return losses

    def _begun(
        self,
        learners: Learners,
        state: OptimiserState | None,
        plans: Sequence[Plan],
        order: list[int],
        places: Places,
    ) -> tuple[Tensor | None, Learners, OptimiserState, PairTable, Lessons, Reach, int]:
        """What a round keeps on the GPU (first the numbers of its learners; none: all, as they lie), and the bytes that a call may take."""
        chosen = [plans[k] for k in order]
        where = None if order == list(range(len(plans))) else upload(np.array(order), self.device)
        picked = learners if where is None else learners[where]
        its = state if where is None or state is None else state[where]
        its = its or OptimiserState.zeros(picked.rows, self.method.second)
        pairs = self._table([plan.batches for plan in chosen], places)
        lessons = Lessons.of(pairs, picked, [plan.stream for plan in chosen], self.data, self.endpoint, places)
        reach = Reach(self.data.source, pairs, places, self.device, self.method.dtype)
        return where, picked, its, pairs, lessons, reach, self.fitting.bytes(UPDATING * 4 * picked.rows.numel())

    def logits(self, learners: Learners, bags: Sequence[np.ndarray], places: Places) -> list[np.ndarray]:
        """Logits (bags, outputs) of every learner for its bags, float32."""
        by_learner = [np.empty((len(numbers), self.endpoint.outputs), np.float32) for numbers in bags]
        collected: list[tuple[Call, Tensor]] = []
        pairs = self._applied(
            learners, bags, places, lambda call, output: collected.append((call, output.logits[:, 0]))
        )
        if collected:
            whole = torch.cat([logits.float() for _, logits in collected]).cpu().numpy()
            row = np.concatenate([np.arange(call.first, call.stop) for call, _ in collected])
            for at, logits in zip(row.tolist(), whole, strict=True):
                by_learner[pairs.learner[at]][pairs.slot[at]] = logits
        return by_learner

    def apply(
        self,
        learners: Learners,
        bags: Sequence[np.ndarray],
        places: Places,
        receive: Callable[[int, np.ndarray, Output, int], None],
    ) -> None:
        """As `Engine.apply`, a place a piece; outputs arrive on the host."""
        collected: list[tuple[Call, Output]] = []

        def keep(call: Call, output: Output) -> None:
            attention = None if output.attention is None else output.attention.cpu()
            collected.append((call, Output(output.logits.cpu(), attention)))

        pairs = self._applied(learners, bags, places, keep)
        for call, output in collected:
            for row, at in enumerate(range(call.first, call.stop)):
                receive(int(pairs.learner[at]), pairs.place[at : at + 1], output, row)

    def _applied(
        self, learners: Learners, bags: Sequence[np.ndarray], places: Places, take: Callable[[Call, Output], None]
    ) -> PairTable:
        """Give `take` the output of every call."""
        pairs = self._table([[batch] if len(batch) else [] for batch in bags], places)
        if not len(pairs.learner):
            return pairs
        lessons = Lessons.of(pairs, learners, None, self.data, self.endpoint, places)
        reach = Reach(self.data.source, pairs, places, self.device, self.method.dtype)
        calls = list(pairs.calls(0, self.cost, self.fitting.bytes()))
        step = _Step(self, learners, pairs, lessons, reach, dict(pairwise(calls)))
        with torch.no_grad():
            for call in calls:
                self.fitting.run(call, lambda part: take(part, step.applied(part)))
        return pairs

    def _table(self, batches: Sequence[Sequence[np.ndarray]], places: Places) -> PairTable:
        return PairTable.of(batches, places.sizes.numpy(), self.cost.worth, self.head.positional)

    def _eager(self, reason: str) -> None:
        """Go on without compiling."""
        self.output, self.optimise = self._output, OPTIMISERS[self.method.optimiser]
        self.reporter.say(f"training is not compiled ({reason}); going on without")

    def _output(
        self, weights: dict[str, Tensor], tiles: Tensor, given: Given, whole: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (pairs, 1, outputs) and the extra tensors of the loss, fp32."""
        output = self.seen(weights, tiles, given, whole, True)
        return output.logits.float(), None if output.side is None else output.side.float()

    def seen(self, weights: dict[str, Tensor], tiles: Tensor, given: Given, whole: bool, training: bool) -> Output:
        """What the head says of every pair; `whole`: all see the same tiles (tiles, width)."""
        count, length = len(given.sizes), tiles.shape[-2]
        positions = torch.arange(length, device=tiles.device)
        mask = (positions < given.sizes.unsqueeze(-1)).unsqueeze(-2)
        if whole:
            tiles = tiles.unsqueeze(0)
        if given.mean is not None and given.deviation is not None:
            tiles = (tiles.float() - given.mean) / given.deviation
        tiles = tiles.to(self.method.dtype).expand(count, length, tiles.shape[-1])
        drawn = None
        if training and self.head.dropout:
            drawn = combined(given.keys.unsqueeze(-1), given.patients.unsqueeze(-1), positions)
        with self.method.arithmetic(self.device):
            return self.head(weights, Inputs(tiles, mask, given.covariates, training, drawn, whole))

    def _update(self, learners: Learners, state: OptimiserState, gradient: Tensor) -> None:
        """The optimiser's step."""
        with torch.no_grad():
            self.folding.unfold(gradient, learners)
            learners.bend(gradient, self.method.clip_norm)
            self.optimise(learners.rows, gradient, state, learners.lr, learners.decay, self.method.momentum)


@dataclass
class _Step:
    """A step of the first learners: their folded weights, and the sum of the gradients of its calls."""

    card: Card
    learners: Learners
    pairs: PairTable
    lessons: Lessons
    reach: Reach
    following: dict[Call, Call]

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.weights = self.card.folding.weights(self.learners)

    def gradient(self, calls: Sequence[Call]) -> Tensor:
        """Of the batch's loss (learners, size), for folded weights."""
        self.sum = torch.zeros_like(self.learners.rows)
        if self.card.endpoint.separable:
            for call in calls:
                self.card.fitting.run(call, self._separate)
        else:
            self._joint(calls)
        return self.sum

    def applied(self, call: Call) -> Output:
        """The head's output without a loss."""
        tiles, part = self._tiles(call), slice(call.first, call.stop)
        weights = {name: value.index_select(0, self.lessons.learner[part]) for name, value in self.weights.items()}
        return self.card.seen(weights, tiles, self._given(part), call.place is not None, False)

    def _separate(self, call: Call) -> None:
        """A call whose losses depend on its own bags alone."""
        part = slice(call.first, call.stop)
        weights, logits, side = self._forward(call)
        losses = self.card.head.losses(
            Output(logits, None, side), self.lessons.targets[part], self.lessons.present[part], self.card.endpoint
        )
        parts = torch.autograd.grad((losses * self.lessons.share[part]).sum(), list(weights.values()))
        self.lessons.losses[part] = losses.detach() * self.lessons.balance[part]
        self._add(call, parts)  # last: where memory is short before, the call is taken again in halves

    def _joint(self, calls: Sequence[Call]) -> None:
        """Losses that depend on the whole batch: first all logits, then the gradient, call by call."""
        lessons, card, count = self.lessons, self.card, len(self.learners.rows)
        if not calls:
            return
        part = slice(calls[0].first, calls[-1].stop)
        where = (lessons.learner[part], lessons.slot[part])
        bags = int(self.pairs.slot[part].max()) + 1
        joined: dict[str, Tensor] = {}

        def look(call: Call) -> None:
            pairs = slice(call.first, call.stop)
            with torch.no_grad():
                _, logits, side = self._forward(call)
                for name, value in {"logits": logits, "side": side}.items():
                    if value is not None:
                        joined.setdefault(name, value.new_zeros((count, bags, *value.shape[2:])))
                        joined[name][lessons.learner[pairs], lessons.slot[pairs]] = value[:, 0]

        for call in calls:
            card.fitting.run(call, look)
        laid = {}
        for name in ("targets", "present", "balance", "share"):
            value = getattr(lessons, name)[part][:, 0]
            laid[name] = value.new_zeros((count, bags, *value.shape[1:]))
            laid[name][where] = value
        leaves = {name: value.requires_grad_() for name, value in joined.items()}
        output = Output(leaves["logits"], None, leaves.get("side"))
        losses = card.head.losses(output, laid["targets"], laid["present"], card.endpoint)
        inward = torch.autograd.grad((losses * laid["share"]).sum(), list(leaves.values()), allow_unused=True)
        slopes = dict(zip(leaves, inward, strict=True))
        lessons.losses[part] = (losses.detach() * laid["balance"])[where].unsqueeze(-1)

        def back(call: Call) -> None:
            own_part = slice(call.first, call.stop)
            weights, logits, side = self._forward(call)
            at = (lessons.learner[own_part], lessons.slot[own_part])
            outputs = {"logits": logits} | ({} if side is None else {"side": side})
            pulled = {name: slope[at].unsqueeze(1) for name, slope in slopes.items() if slope is not None}
            parts = torch.autograd.grad(
                [outputs[name] for name in pulled], list(weights.values()), list(pulled.values())
            )
            self._add(call, parts)

        for call in calls:
            card.fitting.run(call, back)

    def _forward(self, call: Call) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Each pair's weights, of which gradients are taken, logits and what else the loss needs."""
        tiles, part = self._tiles(call), slice(call.first, call.stop)
        learner = self.lessons.learner[part]
        weights = {name: value.index_select(0, learner).requires_grad_() for name, value in self.weights.items()}
        return weights, *self.card.output(weights, tiles, self._given(part), call.place is not None)

    def _tiles(self, call: Call) -> Tensor:
        tiles = self.reach.tiles(call)
        self.reach.expect(self.following.get(call))
        return tiles

    def _given(self, part: slice) -> Given:
        """Clones: a compiled step must not depend on where in the round's tables a call's numbers lie."""
        given = self.lessons.given(part, self.learners, self.card.folding, self.card.data.sites)
        return Given(*(None if value is None else value.clone() for value in given))  # type: ignore[arg-type]

    def _add(self, call: Call, parts: Sequence[Any]) -> None:
        """Add the pairs' gradients to their learners', a stretch of different learners at a time: no sum in changing order."""
        flat = torch.cat([part.flatten(1) for part in parts], dim=1).to(self.sum.dtype)
        learner = self.lessons.learner[call.first : call.stop]
        for stretch in self.pairs.stretches(call):
            self.sum.index_add_(0, learner[stretch], flat[stretch])
