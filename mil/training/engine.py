"""Many small models over the same bags, trained together along one leading axis of models.

A learner is one model at one site (or at all of them): a row of parameters, a row of optimiser state, its own bags and
its own random streams, so that what it becomes does not depend on what is trained beside it. On a CPU learners are
taken in chunks that fit the cache, one thread per chunk, and a chunk goes through all steps of a round before the next one
starts. A step's bags lie end to end, so that no arithmetic is spent on padding; the mask says which bag a tile belongs to.
Where tiles are not in memory, all learners take a step before the next one, and its tiles are fetched meanwhile. On a GPU
the steps are those of `mil/training/card.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.models.head import Head, Inputs, Output
from mil.progress import Reporter, quiet
from mil.training.card import COMPILE_FROM, Card
from mil.training.data import PARTS, Data, Method
from mil.training.dropout import combined, step_keys
from mil.training.layout import RowLayout
from mil.training.learners import Learners, Plan
from mil.training.optimisers import OPTIMISERS, OptimiserState
from mil.training.packing import Places, pack, pieces
from mil.training.steps import Batch, Limits, Shape, StepGroups, shape_of

CPU_NUMBERS = 2**20
"""Tile numbers (tiles x width) that a chunk of learners gathers at once on a CPU: 4 MB, a share of the last-level cache."""
WORTH_A_THREAD = 2**25
"""Multiply-adds per step from which threads save time; below it they wait for Python's lock."""
CPU_CALLS = 2**24
"""Multiply-adds per step below which call overhead exceeds the arithmetic; smaller models are batched."""


class Lesson(NamedTuple):
    """What a batch teaches."""

    targets: Tensor
    """(learners, bags, columns)"""
    present: Tensor
    """Which bags there are (learners, bags)."""
    balance: Tensor
    """Weight of each bag in the loss (learners, bags)."""


@dataclass(frozen=True)
class Taken:
    """Learners side by side in a step, their optimiser's state and the weights that gradients are taken of."""

    learners: Learners
    state: OptimiserState
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, learners: Learners, state: OptimiserState, layout: RowLayout) -> "Taken":
        """Weights on the same memory as the rows, but unknown to autograd.

        `.data`, not `.detach()`: the rows of neighbours are updated on other threads meanwhile, and a version counter that
        they shared would tell autograd that these rows had changed.
        """
        weights = {name: view.data.requires_grad_() for name, view in layout.views(learners.rows).items()}
        return cls(learners, state, weights)


Cut = tuple[Sequence[np.ndarray], Shape]
"""Batches of neighbours, or pieces of them, and how they are laid out."""


@dataclass
class Engine:
    """Trains and applies one kind of head on one set of bags."""

    head: Head
    endpoint: Endpoint
    data: Data
    method: Method = field(default_factory=Method)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tiles: float = 0.0
    """On a GPU: tiles that models will be trained on, over all rounds; from some number on the step is compiled."""
    workers: int = field(default_factory=torch.get_num_threads)
    """Threads that take chunks of learners on a CPU."""
    reporter: Reporter = field(default_factory=quiet)
    by_pairs: bool | None = None
    """Compute as on a GPU (`Card`); none: on a GPU."""

    def __post_init__(self) -> None:
        self.layout = RowLayout(self.head.initial(np.random.default_rng(0)))
        self.card = None
        if self.by_pairs or (self.by_pairs is None and self.device.type != "cpu"):
            given = (self.head, self.endpoint, self.data, self.method, self.device, self.layout)
            self.card = Card(*given, self.tiles * self.layout.size >= COMPILE_FROM, self.reporter)
        self.optimise = OPTIMISERS[self.method.optimiser]
        made = sum(
            shape[0] for shape in self.layout.shapes.values() if len(shape) == 2
        )  # numbers that layers make of a tile
        self.budget = CPU_NUMBERS // max(self.data.width, made)
        self.uncut = 4 * self.budget
        self.limits = Limits(self.budget, CPU_CALLS // max(1, self.layout.size))
        self.objective = self._objective

    def fresh(self, rows: Tensor) -> OptimiserState:
        """The optimiser's state before its first step."""
        return OptimiserState.zeros(rows, self.method.second)

    def train(
        self, learners: Learners, state: OptimiserState | None, plans: Sequence[Plan], places: Places
    ) -> np.ndarray:
        """Take every learner through its plan, in place; the mean loss over its bags (NaN: it had none).

        Without a `state` all begin afresh, and what the optimiser learns is forgotten afterwards.
        """
        if self.card is not None:
            return self.card.train(learners, state, plans, places)
        steps = StepGroups.of([plan.batches for plan in plans], places.sizes.numpy(), self.limits)
        order, losses = steps.order(), np.full(len(plans), np.nan, np.float32)
        if order == list(range(len(plans))):
            return self._train(learners, state or self.fresh(learners.rows), plans, steps, places)
        if order:  # those that have stopped or are not asked are not carried along, those alike lie side by side
            where = torch.tensor(order)
            picked = learners[where]
            its = state[where] if state else self.fresh(picked.rows)
            losses[order] = self._train(picked, its, [plans[k] for k in order], steps.chosen(order), places)
            learners.rows[where] = picked.rows
            if state:
                state.put(where, its)
        return losses

    def _train(
        self, learners: Learners, state: OptimiserState, plans: Sequence[Plan], steps: StepGroups, places: Places
    ) -> np.ndarray:
        """As `train`, learners as they lie."""
        total, seen = torch.zeros((2, len(plans)))
        taken: dict[tuple[int, int], Taken] = {}

        def step(chunk: slice, number: int) -> None:
            for part, shape in steps.alike(chunk, number):
                key = (part.start, part.stop)
                if key not in taken:
                    taken[key] = Taken.of(learners[part], state[part], self.layout)
                streams = np.array([plan.stream for plan in plans[part]], np.uint64)
                keys = torch.from_numpy(step_keys(streams, np.full(len(streams), number)))
                batches = [plan.batches[number] for plan in plans[part]]
                losses, counts = self._step(taken[key], batches, shape, keys, places)
                total[part] += losses
                seen[part] += counts

        self._each(steps, step, self._to_come(steps, places, self._split))
        return (total / seen).numpy()  # 0 / 0 is NaN

    def apply(
        self,
        learners: Learners,
        bags: Sequence[np.ndarray],
        places: Places,
        receive: Callable[[int, np.ndarray, Output, int], None],
    ) -> None:
        """Give `receive` (learner, places of a piece, output of the chunk, its row there) for all bags of all learners."""
        if self.card is not None:
            return self.card.apply(learners, bags, places, receive)
        sizes = places.sizes.numpy()
        whole = StepGroups.of([pieces(numbers, sizes, self.budget) for numbers in bags], sizes, self.limits)
        order = whole.order()
        steps, where = whole.chosen(order), torch.tensor(order, dtype=torch.int64)
        picked = learners if order == list(range(len(bags))) else learners[where]

        def step(chunk: slice, number: int) -> None:
            for part, shape in steps.alike(chunk, number):
                batches = [own_batches[number] for own_batches in steps.batches[part]]
                with torch.no_grad(), self.method.arithmetic(self.device):
                    inputs = self._inputs(picked[part], Batch.of(batches, shape), places)
                    output = self.head(self.layout.views(picked[part].rows), inputs)
                for row, batch in enumerate(batches):
                    receive(order[part.start + row], batch, output, row)

        if order:
            self._each(steps, step, self._to_come(steps, places, lambda batches, shape, _: [(batches, shape)]))

    def logits(self, learners: Learners, bags: Sequence[np.ndarray], places: Places) -> list[np.ndarray]:
        """Logits (bags, outputs) of every learner for its own bags, float32."""
        if self.card is not None:
            return self.card.logits(learners, bags, places)
        logits: list[list[np.ndarray]] = [[np.empty((0, self.endpoint.outputs), np.float32)] for _ in bags]

        def receive(learner: int, batch: np.ndarray, output: Output, row: int) -> None:
            logits[learner].append(output.logits[row, : len(batch)].float().numpy())

        self.apply(learners, bags, places, receive)
        return [np.concatenate(parts) for parts in logits]

    def _step(
        self, taken: Taken, batches: Sequence[np.ndarray], shape: Shape, keys: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step of neighbours on a batch each; summed loss and number of bags of each."""
        learners, whole = taken.learners, Batch.of(batches, shape)
        targets, present, _ = lesson = self._lesson(learners, whole, places)
        counts = self.endpoint.counts(targets, present).sum(-1)
        cut = self._split(batches, shape, places)
        if len(cut) == 1:
            gradient, total = self._gradient(taken, whole, lesson, counts, keys, places)
        else:
            gradient, total = torch.zeros_like(learners.rows), torch.zeros_like(counts)  # of one learner
            for bags, extent in cut:
                piece = Batch.of(bags, extent)
                parts = self._gradient(taken, piece, self._lesson(learners, piece, places), counts, keys, places)
                gradient, total = gradient.add_(parts[0]), total + parts[1]
        with torch.no_grad():
            learners.bend(gradient, self.method.clip_norm)
            self.optimise(learners.rows, gradient, taken.state, learners.lr, learners.decay, self.method.momentum)
        return total, counts

    def _gradient(
        self, taken: Taken, batch: Batch, lesson: Lesson, counts: Tensor, keys: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Gradient (learners, size) of the batch's summed losses over `counts`, and the sums (learners,)."""
        inputs = self._inputs(taken.learners, batch, places, keys)
        with self.method.arithmetic(self.device):
            losses = (self.objective(taken.weights, inputs, lesson.targets, lesson.present) * lesson.balance).sum(-1)
        parts = torch.autograd.grad((losses / counts.clamp(min=1)).sum(), list(taken.weights.values()))
        # A column between the rows: vector operations then end with each, and the optimiser rounds it as if it were alone.
        apart = losses.new_empty((len(losses), 1))
        gradient = torch.cat([*(part.flatten(1) for part in parts), apart], dim=1)[:, : self.layout.size]
        return gradient, losses.detach()

    def _objective(self, weights: dict[str, Tensor], inputs: Inputs, targets: Tensor, present: Tensor) -> Tensor:
        output = self.head(weights, inputs)
        side = None if output.side is None else output.side.float()
        output = Output(output.logits.float(), None, side)
        return self.head.losses(output, targets, present, self.endpoint)

    def _scaled(self, tiles: Tensor, rows: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
        """Tiles (of `rows`, or as they are) of all learners end to end -> centred and scaled (learners, tiles, width)."""
        chosen = (
            tiles if rows is None else tiles.index_select(0, rows)
        )  # in both cases a tensor that nothing else reads
        scaled = chosen.float().view(len(mean), -1, tiles.shape[1]).sub_(mean).div_(deviation)
        return scaled.bfloat16() if self.method.precision == "bf16" else scaled

    def _inputs(self, learners: Learners, batch: Batch, places: Places, keys: Tensor | None = None) -> Inputs:
        """Scaled tiles of a batch of every learner; with `keys` (learners,) for training."""
        packed = pack(batch.numbers, places, batch.columns)
        mean, deviation = (self._of_tiles(learners.buffers[f"features.{name}"], packed.owner, places) for name in PARTS)
        source, rows = self.data.source, packed.rows.flatten()
        if source.tiles is None:
            tiles = self._scaled(source.take(rows), None, mean, deviation)
            source.expect(next(self.to_come, None))
        else:
            tiles = self._scaled(source.tiles, rows, mean, deviation)
        covariates, drawn = self.data.known(batch.bags(places.bags), learners.buffers), None
        if keys is not None and self.head.dropout:
            drawn = combined(keys.unsqueeze(-1), self.data.patients[packed.owner % places.bags], packed.rank)
        return Inputs(tiles, packed.mask, covariates, keys is not None, drawn)

    def _of_tiles(self, buffer: Tensor, owner: Tensor, places: Places) -> Tensor:
        """A scale (learners, width) -> (learners, 1, width); one by site (learners, sites, width) -> that of every tile."""
        if buffer.dim() == 2 or self.data.sites is None:
            return buffer.unsqueeze(1)
        site = self.data.sites[owner % places.bags]
        return buffer[torch.arange(len(buffer)).unsqueeze(1), site]

    def _lesson(self, learners: Learners, batch: Batch, places: Places) -> Lesson:
        """What a batch teaches each learner, in the learner's own unit."""
        targets = self.data.targets[batch.bags(places.bags)]
        balance = learners.balance.gather(-1, self.endpoint.class_of(targets))
        if self.endpoint.scaled:
            mean, deviation = (learners.buffers[f"target.{name}"].unsqueeze(1) for name in ("mean", "deviation"))
            targets = (targets - mean) / deviation
        return Lesson(targets, batch.numbers >= 0, balance)

    def _split(self, batches: Sequence[np.ndarray], shape: Shape, places: Places) -> list[Cut]:
        """The batches as they are if they fit, else cut into pieces whose gradients are added up."""
        if not self.endpoint.separable or len(batches) * max(map(places.tiles, batches)) <= self.uncut:
            return [(batches, shape)]
        cut = [pieces(batch, places.sizes.numpy(), max(1, self.budget // len(batches))) for batch in batches]
        cuts = []
        for number in range(max(map(len, cut))):
            bags = [parts[number] if number < len(parts) else parts[0][:0] for parts in cut]
            cuts.append((bags, shape_of(max(map(len, bags)), max(map(places.tiles, bags)), self.limits)))
        return cuts

    def _to_come(
        self,
        steps: StepGroups,
        places: Places,
        cut: Callable[[Sequence[np.ndarray], Shape, Places], list[Cut]],
    ) -> Iterator[Tensor]:
        """The tiles that `_inputs` will ask for, in their order, so that they can be fetched while the device works."""
        for chunk, number in steps.one_by_one():
            for part, shape in steps.alike(chunk, number):
                for bags, extent in cut([batches[number] for batches in steps.batches[part]], shape, places):
                    batch = Batch.of(bags, extent)
                    yield pack(batch.numbers, places, batch.columns).rows.flatten()

    def _each(self, steps: StepGroups, step: Callable[[slice, int], None], to_come: Iterator[Tensor]) -> None:
        """Every step of every chunk: chunk after chunk, on threads, or step after step where tiles come from afar."""
        if self.data.source.tiles is None:
            self.to_come = to_come
            self.data.source.expect(next(to_come, None))
            with one_thread_each():
                for part, number in steps.one_by_one():
                    step(part, number)
            return

        def run(part: slice, count: int) -> None:
            for number in range(count):
                step(part, number)

        parts = steps.chunks()
        with one_thread_each():
            if self.workers == 1 or steps.tiles_a_call() * self.layout.size < WORTH_A_THREAD:
                for part, count in parts:
                    run(part, count)
                return
            # A thread's first matrix product would otherwise bring threads of its own, which wait by spinning.
            with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for done in [pool.submit(run, part, count) for part, count in parts]:
                    done.result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, every operation runs on one thread, so that sums do not depend on how many there are."""
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(workers)
