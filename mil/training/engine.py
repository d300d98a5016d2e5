"""Many small models over the same bags, trained together along one leading axis of models.

A learner is one model at one site (or at all of them): a row of parameters, a row of optimiser state, its own bags and
its own random streams, so that what it becomes does not depend on what is trained beside it. On a CPU learners are
taken in chunks that fit the cache, a thread a chunk, and a chunk goes through all steps of a round before the next one
starts. A step's bags lie end to end, so that no arithmetic is spent on padding; the mask says which tile is whose. Where
tiles come from afar, all learners take a step before the next one, and its tiles are fetched meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.models.head import Head, Inputs, Output
from mil.training.dropout import combined, step_key
from mil.training.layout import Layout
from mil.training.optimisers import OPTIMISERS, OptimiserState, clip
from mil.training.packing import Packed, Places, chunks, pack, padded_length, pieces, runs
from mil.training.sources import Source

CPU_NUMBERS = 2**20
"""Tile numbers (tiles x width) that a chunk of learners gathers at once on a CPU: 4 MB, a share of the last-level cache."""
GPU_NUMBERS = 2**30
"""The same on a GPU: 2 GB in bf16, and some four times as much for what is kept for the backward pass."""


@dataclass(frozen=True)
class Method:
    """How a step is taken; the same for all learners."""

    optimiser: str = "adamw"
    momentum: float = 0.0
    clip_norm: float | None = None
    precision: str = "fp32"


@dataclass
class Learners:
    """Rows of all learners: parameters (learners, size), and the buffers and settings (learners, ...) that go with them."""

    rows: Tensor
    buffers: dict[str, Tensor]
    """By name: mean and deviation of the features, of the covariates, of the target."""
    lr: Tensor
    decay: Tensor
    balance: Tensor
    """Weight of each class in the loss (learners, classes)."""
    pull: Tensor | None = None
    """FedProx's mu (learners, 1), towards `anchor`."""
    anchor: Tensor | None = None
    shift: Tensor | None = None
    """Added to every gradient: SCAFFOLD's c - c_i."""

    def __getitem__(self, chosen: slice) -> "Learners":
        rest = (self.pull, self.anchor, self.shift)
        buffers = {name: buffer[chosen] for name, buffer in self.buffers.items()}
        own = (part[chosen] for part in (self.lr, self.decay, self.balance))
        return Learners(self.rows[chosen], buffers, *own, *(None if part is None else part[chosen] for part in rest))


@dataclass(frozen=True)
class Plan:
    """What a learner does in a round: its batches of places, and the seed of its dropout."""

    batches: Sequence[np.ndarray] = ()
    stream: int = 0


@dataclass
class Data:
    """What the models learn from: tiles, and a row of targets and covariates for every bag."""

    source: Source
    width: int
    targets: Tensor
    patients: Tensor
    """A number of each patient's own (bags,) int64."""
    covariates: Tensor | None = None


@dataclass
class Engine:
    """Trains and applies one kind of head on one set of bags."""

    head: Head
    endpoint: Endpoint
    data: Data
    method: Method = field(default_factory=Method)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    """Let torch.compile fuse the step; worth its minutes on a GPU."""

    def __post_init__(self) -> None:
        self.layout = Layout(self.head.initial(np.random.default_rng(0)))
        self.optimise = OPTIMISERS[self.method.optimiser]
        on_cpu = self.device.type == "cpu"
        self.budget = (CPU_NUMBERS if on_cpu else GPU_NUMBERS) // self.data.width
        self.uncut = 4 * self.budget if on_cpu else self.budget
        self.objective, self.scaled = self._objective, self._scaled
        if self.compiled:
            self.objective, self.scaled = torch.compile(self._objective), torch.compile(self._scaled)
            self.optimise = torch.compile(self.optimise)

    def fresh(self, rows: Tensor) -> OptimiserState:
        """The optimiser's state before its first step."""
        return OptimiserState.zeros(rows, second=self.method.optimiser != "sgd")

    def train(self, learners: Learners, state: OptimiserState, plans: Sequence[Plan], places: Places) -> np.ndarray:
        """Take every learner through its plan, in place; the mean loss over its bags (NaN: it had none)."""
        total, seen = torch.zeros((2, len(plans)), device=self.device)
        places = places.to(self.device)
        sizes = places.sizes.cpu().numpy()
        tiles = [[int(sizes[batch].sum()) for batch in plan.batches] for plan in plans]

        def step(chunk: slice, number: int) -> None:
            for part in self._alike(plans, tiles, chunk, number):
                batches = [plan.batches[number] for plan in plans[part]]
                keys = torch.tensor([step_key(plan.stream, number) for plan in plans[part]], device=self.device)
                losses, counts = self._step(learners[part], state[part], batches, keys, places, sizes)
                total[part] += losses
                seen[part] += counts

        self._each(tiles, step, self._to_come(plans, tiles, places, sizes, self._split))
        return (total / seen).cpu().numpy()  # 0 / 0 is NaN

    def apply(
        self,
        learners: Learners,
        bags: Sequence[np.ndarray],
        places: Places,
        receive: Callable[[int, np.ndarray, Output, int], None],
    ) -> None:
        """Give `receive` (learner, places of a piece, output of the chunk, its row there) for all bags of all learners."""
        places = places.to(self.device)
        sizes = places.sizes.cpu().numpy()
        plans = [Plan(pieces(own, sizes, self.budget)) for own in bags]
        tiles = [[int(sizes[batch].sum()) for batch in plan.batches] for plan in plans]

        def step(chunk: slice, number: int) -> None:
            for part in self._alike(plans, tiles, chunk, number):
                batches = [plan.batches[number] for plan in plans[part]]
                inputs = self._inputs(learners[part], self._numbers(batches), batches, places, sizes)
                with torch.no_grad(), self._arithmetic():
                    output = self.head(self.layout.views(learners[part].rows), inputs)
                for row, batch in enumerate(batches):
                    receive(part.start + row, batch, output, row)

        self._each(tiles, step, self._to_come(plans, tiles, places, sizes, lambda batches, _: [batches]))

    def logits(self, learners: Learners, bags: Sequence[np.ndarray], places: Places) -> list[np.ndarray]:
        """Logits (bags, outputs) of every learner for its own bags, float32."""
        found: list[list[np.ndarray]] = [[np.empty((0, self.endpoint.outputs), np.float32)] for _ in bags]

        def receive(learner: int, batch: np.ndarray, output: Output, row: int) -> None:
            found[learner].append(output.logits[row, : len(batch)].float().cpu().numpy())

        self.apply(learners, bags, places, receive)
        return [np.concatenate(parts) for parts in found]

    def _step(
        self,
        learners: Learners,
        state: OptimiserState,
        batches: Sequence[np.ndarray],
        keys: Tensor,
        places: Places,
        sizes: np.ndarray,
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step of neighbours on a batch each; summed loss and number of bags of each."""
        # `.data`, not `.detach()`: the rows of neighbours are updated on other threads meanwhile, and a version counter
        # that they shared would tell autograd that these rows had changed
        weights = {name: view.data.requires_grad_() for name, view in self.layout.views(learners.rows).items()}
        targets, present, _ = self._targets(learners, self._numbers(batches), places)
        counts = self.endpoint.counts(targets, present).sum(-1)
        gradient = torch.zeros_like(learners.rows)
        total = torch.zeros(len(batches), device=self.device)
        for part in self._split(batches, sizes):
            numbers = self._numbers(part)
            inputs = self._inputs(learners, numbers, part, places, sizes, keys)
            targets, present, balance = self._targets(learners, numbers, places)
            with self._arithmetic():
                losses = self.objective(weights, inputs, targets, present) * balance
            share = losses.sum(-1) / counts.clamp(min=1)
            parts = torch.autograd.grad(share.sum(), list(weights.values()))
            gradient += torch.cat([one.flatten(1) for one in parts], dim=1)
            total += losses.detach().sum(-1)
        with torch.no_grad():
            if learners.pull is not None and learners.anchor is not None:
                gradient += learners.pull * (learners.rows - learners.anchor)
            if learners.shift is not None:
                gradient += learners.shift
            if self.method.clip_norm is not None:
                clip(gradient, self.method.clip_norm)
            self.optimise(learners.rows, gradient, state, learners.lr, learners.decay, self.method.momentum)
        return total, counts

    def _objective(self, weights: dict[str, Tensor], inputs: Inputs, targets: Tensor, present: Tensor) -> Tensor:
        output = self.head(weights, inputs)
        side = None if output.side is None else output.side.float()
        output = Output(output.logits.float(), None, side)
        return self.head.losses(output, targets, present, self.endpoint)

    def _scaled(self, tiles: Tensor, rows: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
        """Tiles (of `rows`, or as they are) of all learners end to end -> centred and scaled (learners, tiles, width)."""
        chosen = tiles if rows is None else tiles.index_select(0, rows)
        scaled = chosen.float().view(len(mean), -1, tiles.shape[1]).sub(mean).div_(deviation)
        return scaled.bfloat16() if self.method.precision == "bf16" else scaled

    def _inputs(
        self,
        learners: Learners,
        numbers: Tensor,
        batches: Sequence[np.ndarray],
        places: Places,
        sizes: np.ndarray,
        keys: Tensor | None = None,
    ) -> Inputs:
        """Scaled tiles of a batch of every learner; with `keys` (learners,) for training."""
        packed = self._packed(batches, places, sizes)
        mean, deviation = (learners.buffers[f"features.{name}"].unsqueeze(1) for name in ("mean", "deviation"))
        source, rows = self.data.source, packed.rows.flatten()
        if source.tiles is None:
            tiles = self.scaled(source.take(rows), None, mean, deviation)
            source.expect(next(self.to_come, None))
        else:
            tiles = self.scaled(source.tiles, rows, mean, deviation)
        covariates, drawn = None, None
        if self.data.covariates is not None:
            mean, deviation = (learners.buffers[f"covariates.{name}"].unsqueeze(1) for name in ("mean", "deviation"))
            known = self.data.covariates[numbers.clamp(min=0) % places.bags]
            covariates = ((known - mean) / deviation).nan_to_num(0.0)  # not known: the training patients' mean
        if keys is not None and self.head.dropout:
            drawn = combined(keys.unsqueeze(-1), self.data.patients[packed.owner % places.bags], packed.rank)
        return Inputs(tiles, packed.mask, covariates, keys is not None, drawn)

    def _packed(self, batches: Sequence[np.ndarray], places: Places, sizes: np.ndarray) -> Packed:
        longest = max(int(sizes[batch].sum()) for batch in batches)
        return pack(self._numbers(batches), places, padded_length(longest, alone=2 * longest > self.budget))

    def _to_come(
        self,
        plans: Sequence[Plan],
        tiles: Sequence[Sequence[int]],
        places: Places,
        sizes: np.ndarray,
        cut: Callable[[Sequence[np.ndarray], np.ndarray], Iterable[Sequence[np.ndarray]]],
    ) -> Iterator[Tensor]:
        """The tiles that `_inputs` will ask for, in their order, so that they can be fetched while the device works."""
        for chunk, number in self._step_by_step(tiles):
            for part in self._alike(plans, tiles, chunk, number):
                for piece in cut([plan.batches[number] for plan in plans[part]], sizes):
                    yield self._packed(piece, places, sizes).rows.flatten()

    def _targets(self, learners: Learners, numbers: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Targets (learners, bags, columns), which bags there are, and their weights in the loss."""
        present = numbers >= 0
        targets = self.data.targets[numbers.clamp(min=0) % places.bags]
        balance = learners.balance.gather(-1, self.endpoint.class_of(targets))
        if self.endpoint.scaled:
            mean, deviation = (learners.buffers[f"target.{name}"].unsqueeze(1) for name in ("mean", "deviation"))
            targets = (targets - mean) / deviation
        return targets, present, balance

    def _numbers(self, batches: Sequence[np.ndarray]) -> Tensor:
        """Batches as one table (learners, bags), -1 for none; at least two bags wide, see `layers.NARROW`."""
        table = np.full((len(batches), max(2, *(len(batch) for batch in batches))), -1, np.int64)
        for row, batch in enumerate(batches):
            table[row, : len(batch)] = batch
        return torch.from_numpy(table).to(self.device)

    def _split(self, batches: Sequence[np.ndarray], sizes: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The batches as they are if they fit, else cut into pieces whose gradients are added up."""
        fits = len(batches) * max(int(sizes[batch].sum()) for batch in batches) <= self.uncut
        if fits or not self.endpoint.separable:
            yield list(batches)
            return
        cut = [pieces(batch, sizes, max(1, self.budget // len(batches))) for batch in batches]
        for number in range(max(map(len, cut))):
            yield [own[number] if number < len(own) else own[0][:0] for own in cut]

    def _alike(
        self, plans: Sequence[Plan], tiles: Sequence[Sequence[int]], chunk: slice, number: int
    ) -> Iterator[slice]:
        """Neighbours of a chunk whose step `number` has the same shape, so that no learner is padded to another's size."""
        keys: list[object] = []
        for plan, own in zip(plans[chunk], tiles[chunk], strict=True):
            alone = number < len(own) and 2 * own[number] > self.budget
            shape = None if number >= len(own) else (padded_length(own[number], alone), len(plan.batches[number]))
            keys.append((shape, len(keys)) if alone and self.device.type == "cpu" else shape)
        return (slice(part.start + chunk.start, part.stop + chunk.start) for part in runs(keys))

    def _chunks(self, tiles: Sequence[Sequence[int]]) -> list[tuple[slice, int]]:
        """Chunks of learners, and how many steps each has."""
        parts = chunks([max(own, default=0) for own in tiles], self.budget)
        return [(part, max((len(own) for own in tiles[part]), default=0)) for part in parts]

    def _step_by_step(self, tiles: Sequence[Sequence[int]]) -> Iterator[tuple[slice, int]]:
        """The first step of every chunk, then the second: all models use a bag while it is here."""
        parts = self._chunks(tiles)
        for number in range(max((count for _, count in parts), default=0)):
            yield from ((part, number) for part, count in parts if number < count)

    def _each(
        self, tiles: Sequence[Sequence[int]], step: Callable[[slice, int], None], to_come: Iterator[Tensor]
    ) -> None:
        """Every step of every chunk: chunk after chunk on threads, or step after step where tiles come from afar."""
        if self.data.source.tiles is None:
            self.to_come = to_come
            self.data.source.expect(next(to_come, None))
            for part, number in self._step_by_step(tiles):
                step(part, number)
            return

        def run(part: slice, count: int) -> None:
            for number in range(count):
                step(part, number)

        parts = self._chunks(tiles)
        if self.device.type != "cpu" or torch.get_num_threads() == 1:
            for part, count in parts:
                run(part, count)
            return
        with one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(run, part, count) for part, count in parts]:
                done.result()

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.method.precision == "bf16")


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Number of workers; inside, every operation runs on one thread, so that sums do not depend on how many there are."""
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield workers
    finally:
        torch.set_num_threads(workers)
