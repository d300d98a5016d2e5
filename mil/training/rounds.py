"""Rounds of all models of a phase at once: broadcast, train every site's learner, aggregate, watch the inner fold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mil.progress import Steps
from mil.specs.experiments import TrainingSpec
from mil.strategies.strategy import Answers, Strategy, control_after, histofl_noise, shares
from mil.training.checkpoint import Checkpoint
from mil.training.clients import Clients, noise_stream, participants, visits
from mil.training.cohort import Cohort
from mil.training.engine import Engine, Learners, Plan
from mil.training.optimisers import OptimiserState, schedule
from mil.training.plans import Rounds, dropout_stream, first_weights
from mil.training.protocol import Task
from mil.training.records import Records
from mil.training.setup import Setup
from mil.training.traffic import bytes_each_way

SLAB = 2**18
"""Numbers of the global models that the server takes at once, so that float64 sums stay in the cache."""


@dataclass
class Phase:
    """Where a phase stands: everything that the next round needs."""

    rows: Tensor
    """Global models (tasks, size)."""
    learners: Learners
    """Models at the sites (tasks x sites, size), with their buffers."""
    state: OptimiserState
    server: dict[str, Tensor]
    """The server's own tensors, named `part/row` (tasks, size)."""
    controls: Tensor | None
    """SCAFFOLD: the sites' control variates (tasks x sites, size)."""
    live: np.ndarray
    """Tasks that are still training."""


@dataclass(frozen=True)
class Arrived:
    """Which sites' answers of a round there are."""

    tasks: Sequence[Task]
    number: int
    counts: Tensor
    """Training patients (tasks, sites)."""
    answered: Tensor
    """Of those sites that took part; 0 of the others (tasks, sites)."""
    weighting: str


class Driver:
    """Runs the rounds of a list of tasks under one strategy, all tasks and sites along one axis."""

    def __init__(
        self,
        engine: Engine,
        rounds: Rounds,
        cohort: Cohort,
        setup: Setup,
        strategy: Strategy,
        training: TrainingSpec,
        records: Records,
    ) -> None:
        self.engine, self.rounds, self.cohort, self.setup = engine, rounds, cohort, setup
        self.strategy, self.training, self.records = strategy, training, records
        self.bag = rounds.store.require(cohort.patients)
        self.crossing = bytes_each_way(engine.layout.shapes, strategy)

    def run(
        self, tasks: Sequence[Task], name: str, kind: str, steps: Steps, checkpoint: Checkpoint | None = None
    ) -> tuple[Phase, Clients]:
        """Every task for its number of rounds; a task that is finished costs nothing more.

        `name` names the phase in checkpoints; its `kind`, inner or refit, in the tables.
        """
        clients = Clients.of(tasks, self.cohort, self.strategy)
        phase = self._begin(tasks, clients)
        self.records.begin(tasks, clients)
        done = checkpoint.resume(name, phase, self.records) if checkpoint else 0
        last = max(task.rounds for task in tasks)
        for number in range(1, last + 1):
            if number <= done:
                steps.done()
                continue
            phase.live = phase.live & np.array([task.rounds >= number for task in tasks])
            if phase.live.any():
                self._round(phase, clients, tasks, number, kind)
            if checkpoint:
                checkpoint.save(name, number, phase, self.records)
            steps.done(models=int(phase.live.sum()))
        if self.strategy.finetune_epochs and kind == "refit":
            self._finetune(phase, clients, tasks)
        return phase, clients

    def _begin(self, tasks: Sequence[Task], clients: Clients) -> Phase:
        first = [self._first(task) for task in tasks]
        rows = torch.from_numpy(np.stack(first)).to(self.engine.device)
        of = torch.arange(len(clients.patients), device=rows.device) // clients.sites
        buffers = {name: value.to(rows.device)[of] for name, value in self.setup.buffers(tasks).items()}
        weighted = self.training.imbalance == "weights"
        balance = self.setup.balance(tasks) if weighted else torch.ones(len(tasks), self.setup.endpoint.classes)
        decay = torch.tensor([[task.candidate.weight_decay] for task in tasks]).to(rows.device)[of]
        learners = Learners(rows[of], buffers, torch.zeros_like(decay), decay, balance.to(rows.device)[of])
        if self.strategy.mu:
            learners.pull = torch.full_like(decay, self.strategy.mu)
            learners.anchor = learners.rows.clone()
        controls = torch.zeros_like(learners.rows) if self.strategy.controls else None
        kept = learners.rows[:0] if self.strategy.federated else learners.rows  # a site begins every round afresh
        state = self.engine.fresh(kept)
        return Phase(rows, learners, state, self.strategy.begin({"row": rows}), controls, np.ones(len(tasks), bool))

    def _first(self, task: Task) -> np.ndarray:
        generator = first_weights(self.training.seed, task.group.repeat, task.group.fold, task.replica)
        return self.engine.layout.flat(self.engine.head.initial(generator))

    def _round(self, phase: Phase, clients: Clients, tasks: Sequence[Task], number: int, kind: str) -> None:
        seed, spec = self.training.seed, self.strategy.spec
        share = getattr(getattr(spec, "base", spec), "participation", 1.0)
        active = np.repeat(phase.live[:, None], clients.sites, 1)
        if self.strategy.federated:
            active &= participants(clients.sites, share, seed, number)
        if self.strategy.cyclic:
            losses = np.full(active.shape, np.nan)
            shuffled = getattr(getattr(spec, "base", spec), "shuffled", False)
            for site in visits(clients.sites, shuffled, seed, number):
                turn = active & (np.arange(clients.sites) == site)
                losses[:, site] = self._train(phase, clients, tasks, turn, number)[:, site]
                self._pass_on(phase, clients, turn)
        else:
            losses = self._train(phase, clients, tasks, active, number)
            self._aggregate(phase, clients, tasks, active, number)
        models = self.personal(phase, clients) if self.strategy.local_parts else phase.rows
        self.records.round(self.engine, phase, models, losses, active, number, kind, self.crossing)
        if kind == "inner":
            phase.live = phase.live & ~self.records.stalled(tasks, number, self.training.patience)

    def _train(
        self, phase: Phase, clients: Clients, tasks: Sequence[Task], active: np.ndarray, number: int
    ) -> np.ndarray:
        """Broadcast and train the active learners; their mean losses (tasks, sites)."""
        learners = phase.learners
        starts = self.personal(phase, clients)
        if self.strategy.federated:  # a site starts every round from the global model, with a fresh optimiser
            if active.all():
                learners.rows.copy_(starts)
            else:
                where = torch.from_numpy(np.flatnonzero(active.ravel())).to(starts.device)
                learners.rows[where] = starts[where]
        if learners.anchor is not None:
            learners.anchor.copy_(starts)
        if phase.controls is not None:
            of = torch.arange(len(starts), device=starts.device) // clients.sites
            learners.shift = phase.server["control/row"][of] - phase.controls
        factor = schedule(self.training.schedule, number - 1, self.training.rounds, self.training.warmup)
        rates = [tasks[clients.task(k)].candidate.lr * factor for k in range(len(clients.patients))]
        learners.lr.copy_(torch.tensor(rates).unsqueeze(1))
        plans = self._plans(clients, tasks, active, number)
        epochs = max((self.rounds.epochs(len(own)) for own in clients.patients), default=1)
        state = None if self.strategy.federated else phase.state
        losses = self.engine.train(learners, state, plans, self.rounds.places(number, epochs))
        self.travelled = torch.tensor([rate * len(plan.batches) for rate, plan in zip(rates, plans, strict=True)])
        self.starts = starts
        return losses.reshape(active.shape)

    def _plans(self, clients: Clients, tasks: Sequence[Task], active: np.ndarray, number: int) -> list[Plan]:
        balances = self.setup.balance(tasks) if self.training.imbalance == "sampling" else None
        classes = self.setup.endpoint.class_of(torch.from_numpy(self.cohort.targets))
        plans = []
        for learner, (wanted, patients) in enumerate(zip(active.ravel(), clients.patients, strict=True)):
            task, site = tasks[clients.task(learner)], clients.name(learner)
            if not wanted or not len(patients):
                plans.append(Plan())
                continue
            balance = None
            if balances is not None:
                balance = balances[clients.task(learner)][classes[patients]].numpy().astype(np.float64)
            batches = self.rounds.batches(self.bag[patients], number, balance, f"{task.name}/{site}")
            plans.append(Plan(batches, dropout_stream(self.training.seed, task.name, site, number)))
        return plans

    def personal(self, phase: Phase, clients: Clients) -> Tensor:
        """The model of every learner (tasks x sites, size): the global one, but for the parts that stay at the site."""
        if not self.strategy.federated:
            return phase.rows
        of = torch.arange(len(phase.learners.rows), device=phase.rows.device) // clients.sites
        rows = phase.rows[of]
        for name, place in self.engine.layout.places.items():
            if name.split(".")[0] in self.strategy.local_parts:
                rows[:, place] = phase.learners.rows[:, place]
        return rows

    def _pass_on(self, phase: Phase, clients: Clients, turn: np.ndarray) -> None:
        for task, site in zip(*np.nonzero(turn), strict=True):
            learner = int(task) * clients.sites + int(site)
            if len(clients.patients[learner]):
                phase.rows[int(task)] = phase.learners.rows[learner]

    def _aggregate(
        self, phase: Phase, clients: Clients, tasks: Sequence[Task], active: np.ndarray, number: int
    ) -> None:
        """The server's step of every task that had an answer, some tasks of one learning rate at a time."""
        if not self.strategy.federated:
            phase.rows.copy_(phase.learners.rows)
            return
        weighting = getattr(getattr(self.strategy.spec, "base", self.strategy.spec), "weighting", "patients")
        counts = clients.counts()
        arrived = Arrived(tasks, number, counts, counts * torch.from_numpy(active), weighting)
        there = torch.nonzero(arrived.answered.sum(1) > 0).squeeze(1)
        rates = [tasks[k].candidate.server_lr for k in there.tolist()]
        for rate in dict.fromkeys(rates):
            own = there[torch.tensor([one == rate for one in rates])]
            for slab in own.split(max(1, SLAB // phase.rows.shape[1])):
                self._serve(self.strategy.at_rate(rate), phase, clients, slab, arrived)

    def _serve(self, strategy: Strategy, phase: Phase, clients: Clients, slab: Tensor, arrived: Arrived) -> None:
        device = phase.rows.device
        wanted = (slab.unsqueeze(0) * clients.sites + torch.arange(clients.sites).unsqueeze(1)).to(
            device
        )  # (sites, tasks)
        slab = slab.to(device)
        weights = shares(arrived.answered[slab.cpu()].T, arrived.weighting).to(device)
        answers = Answers({"row": phase.learners.rows[wanted]}, weights)
        if strategy.histofl_noise:
            answers = replace(answers, noise={"row": self._noise(phase, clients, wanted, weights, arrived)})
        if phase.controls is not None:
            own, server = phase.controls[wanted], phase.server["control/row"][slab]
            travelled = self.travelled.to(device)[wanted].unsqueeze(-1)
            moved = control_after(own, server, self.starts[wanted], phase.learners.rows[wanted], travelled)
            kept = torch.where((weights > 0).unsqueeze(-1), moved, own)
            standing = shares(arrived.counts[slab.cpu()].T, arrived.weighting).to(device)
            answers = replace(answers, controls={"row": kept - own}, standing=standing)
            phase.controls[wanted] = kept
        server = {name: value[slab] for name, value in phase.server.items()}
        state, server = strategy.server_step({"row": phase.rows[slab]}, server, answers)
        phase.rows[slab] = state["row"]
        for name, value in server.items():
            phase.server[name][slab] = value

    def _noise(self, phase: Phase, clients: Clients, wanted: Tensor, weights: Tensor, arrived: Arrived) -> Tensor:
        """HistoFL's noise of the learners `wanted` (sites, tasks, size), tensor by tensor; 0 where no answer came."""
        layout, alpha = self.engine.layout, self.strategy.histofl_noise
        noise = torch.zeros(*wanted.shape, layout.size, dtype=torch.float64, device=wanted.device)
        for site, column in torch.nonzero(weights).tolist():
            learner = int(wanted[site, column])
            task = arrived.tasks[clients.task(learner)]
            stream = noise_stream(self.training.seed, task.name, clients.name(learner), arrived.number)
            own = {name: view[0] for name, view in layout.views(phase.learners.rows[learner : learner + 1]).items()}
            drawn = histofl_noise(own, alpha, stream)
            noise[site, column] = torch.cat([drawn[name].ravel() for name in layout.shapes])
        return noise

    def _finetune(self, phase: Phase, clients: Clients, tasks: Sequence[Task]) -> None:
        """Epochs of plain training at every site from the global model; the learners' rows are the result."""
        phase.learners.rows.copy_(self.personal(phase, clients))
        phase.learners.pull = phase.learners.shift = None
        phase.learners.lr.copy_(
            torch.tensor([[tasks[clients.task(k)].candidate.lr] for k in range(len(clients.patients))])
        )
        state = self.engine.fresh(phase.learners.rows)
        active = np.ones((clients.tasks, clients.sites), bool)
        for epoch in range(self.strategy.finetune_epochs):
            number = self.training.rounds + 1 + epoch
            plans = self._plans(clients, tasks, active, number)
            epochs = max(self.rounds.epochs(len(own)) for own in clients.patients)
            self.engine.train(phase.learners, state, plans, self.rounds.places(number, epochs))
