"""Rounds of all models of a phase at once: broadcast, train every site's learner, aggregate, watch the inner fold."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mil.progress import Steps
from mil.specs.experiments import TrainingSpec
from mil.strategies.aggregation import Answers
from mil.strategies.scaffold import control_after
from mil.strategies.strategy import Strategy, server_part
from mil.training.aggregate import begin_models, step_models
from mil.training.checkpoint import Checkpoint
from mil.training.clients import Clients, participants, visits
from mil.training.cohort import TrainingCohort
from mil.training.engine import Engine, Learners, Plan
from mil.training.optimisers import schedule
from mil.training.phase import Phase
from mil.training.plans import Rounds, dropout_stream, first_weights
from mil.training.protocol import Task
from mil.training.records import Records
from mil.training.setup import Setup
from mil.training.traffic import bytes_each_way

SLAB = 2**18
"""Numbers of the global models that the server takes at once, so that float64 sums stay in the cache."""


class Driver:
    """Runs the rounds of a list of tasks under one strategy, all tasks and sites along one axis."""

    def __init__(
        self,
        engine: Engine,
        rounds: Rounds,
        cohort: TrainingCohort,
        setup: Setup,
        strategy: Strategy,
        training: TrainingSpec,
        records: Records,
    ) -> None:
        self.engine, self.rounds, self.cohort, self.setup = engine, rounds, cohort, setup
        self.strategy, self.finetune_epochs = strategy.of_rounds, strategy.finetune_epochs
        self.training, self.records = training, records
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
        if self.finetune_epochs and kind == "refit":
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
        if self.strategy.pull:
            learners.pull = torch.full_like(decay, self.strategy.pull)
            learners.anchor = learners.rows.clone()
        controls = torch.zeros_like(learners.rows) if self.strategy.controls else None
        kept = learners.rows[:0] if self.strategy.federated else learners.rows  # a site begins every round afresh
        state = self.engine.fresh(kept)
        server = begin_models(self.strategy, self.engine.layout.views(rows))
        return Phase(rows, learners, state, server, controls, np.ones(len(tasks), bool))

    def _first(self, task: Task) -> np.ndarray:
        generator = first_weights(self.training.seed, task.group.repeat, task.group.fold, task.replica)
        return self.engine.layout.flat(self.engine.head.initial(generator))

    def _round(self, phase: Phase, clients: Clients, tasks: Sequence[Task], number: int, kind: str) -> None:
        seed, strategy = self.training.seed, self.strategy
        active = np.repeat(phase.live[:, None], clients.sites, 1)
        if self.strategy.federated:
            active &= participants(clients.sites, strategy.share, seed, number)
        if self.strategy.cyclic:
            losses = np.full(active.shape, np.nan)
            for site in visits(clients.sites, strategy.random_order, seed, number):
                turn = active & (np.arange(clients.sites) == site)
                losses[:, site] = self._train(phase, clients, tasks, turn, number)[:, site]
                self._pass_on(phase, clients, turn)
        else:
            losses = self._train(phase, clients, tasks, active, number)
            self._aggregate(phase, clients, tasks, active)
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
            learners.shift = self.engine.layout.rows(server_part(phase.server, "control"))[of] - phase.controls
        factor = schedule(self.training.schedule, number - 1, self.training.rounds, self.training.warmup)
        rates = [tasks[clients.task(k)].candidate.lr * factor for k in range(len(clients.patients))]
        learners.lr.copy_(torch.tensor(rates).unsqueeze(1))
        plans = self._plans(clients, tasks, active, number)
        epochs = max((self.rounds.epochs(len(patients)) for patients in clients.patients), default=1)
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
        for name, columns in self.engine.layout.places.items():
            if name.split(".")[0] in self.strategy.local_parts:
                rows[:, columns] = phase.learners.rows[:, columns]
        return rows

    def _pass_on(self, phase: Phase, clients: Clients, turn: np.ndarray) -> None:
        for task, site in zip(*np.nonzero(turn), strict=True):
            learner = int(task) * clients.sites + int(site)
            if len(clients.patients[learner]):
                phase.rows[int(task)] = phase.learners.rows[learner]

    def _aggregate(self, phase: Phase, clients: Clients, tasks: Sequence[Task], active: np.ndarray) -> None:
        """The server's step of every task that had an answer: some tasks at a time, of equal rate and the same sites."""
        if not self.strategy.federated:
            phase.rows.copy_(phase.learners.rows)
            return
        answered = clients.counts() * torch.from_numpy(active)
        alike: dict[tuple[float | None, tuple[bool, ...]], list[int]] = {}
        for k, answering in enumerate((answered > 0).tolist()):
            if any(answering):
                alike.setdefault((tasks[k].candidate.server_lr, tuple(answering)), []).append(k)
        for (rate, there), models in alike.items():
            sites = torch.tensor(there).nonzero().squeeze(1)
            for some in torch.tensor(models).split(max(1, SLAB // phase.rows.shape[1])):
                self._serve(self.strategy.at_rate(rate), phase, clients, some, sites)

    def _serve(self, strategy: Strategy, phase: Phase, clients: Clients, some: Tensor, sites: Tensor) -> None:
        """The server's step of `some` tasks, which the same sites answered."""
        layout, device = self.engine.layout, phase.rows.device
        amounts = strategy.amounts(clients.counts()[some])
        learners = (some.unsqueeze(1) * clients.sites + sites).to(device)  # (tasks, sites)
        answers = Answers(layout.views(phase.learners.rows[learners]), amounts[:, sites].to(device))
        some = some.to(device)
        server = {name: value[some] for name, value in phase.server.items()}
        if phase.controls is not None:
            controls, start, end = (rows[learners] for rows in (phase.controls, self.starts, phase.learners.rows))
            common = layout.rows(server_part(server, "control")).unsqueeze(1)
            kept = control_after(controls, common, start, end, self.travelled.to(device)[learners].unsqueeze(-1))
            answers = replace(answers, controls=layout.views(kept - controls), total=amounts.sum(1).to(device))
            phase.controls[learners] = kept
        state, server = step_models(strategy, layout.views(phase.rows[some]), server, answers)
        phase.rows[some] = layout.rows(state)
        for name, value in server.items():
            phase.server[name][some] = value

    def _finetune(self, phase: Phase, clients: Clients, tasks: Sequence[Task]) -> None:
        """Epochs of plain training at every site from the global model; the learners' rows are the result."""
        phase.learners.rows.copy_(self.personal(phase, clients))
        phase.learners.pull = phase.learners.shift = None
        phase.learners.lr.copy_(
            torch.tensor([[tasks[clients.task(k)].candidate.lr] for k in range(len(clients.patients))])
        )
        state = self.engine.fresh(phase.learners.rows)
        active = np.ones((clients.tasks, clients.sites), bool)
        for epoch in range(self.finetune_epochs):
            number = self.training.rounds + 1 + epoch
            plans = self._plans(clients, tasks, active, number)
            epochs = max(self.rounds.epochs(len(patients)) for patients in clients.patients)
            self.engine.train(phase.learners, state, plans, self.rounds.places(number, epochs))
