"""Rounds of all models of a phase at once: broadcast, train every site's learner, aggregate, watch the inner fold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mil.federation.ledger import Ledger, digest
from mil.federation.strategies import Strategy, shares
from mil.progress import Steps
from mil.rng import seed_of
from mil.training.cohort import Cohort
from mil.training.engine import Engine, Learners
from mil.training.optimisers import OptimiserState
from mil.training.protocol import Task
from mil.training.scaling import Moments


@dataclass
class Phase:
    """What came of a phase: final rows (tasks, size) and scales, the round table's rows, watched losses."""

    rows: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    table: list[dict[str, object]] = field(default_factory=list)
    losses: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Clients:
    """The learners of a phase, task by task and site by site: `task[i]` and `site[i]` own the patients `patients[i]`."""

    task: np.ndarray
    site: tuple[str, ...]
    patients: tuple[np.ndarray, ...]


def clients_of(tasks: Sequence[Task], cohort: Cohort, strategy: Strategy) -> Clients:
    """A learner for every task and site where the strategy is federated, else one for every task."""
    task, site, patients = [], [], []
    for number, one in enumerate(tasks):
        groups = [(name,) for name in one.trained_on] if strategy.federated else [one.trained_on]
        for group in groups:
            task.append(number)
            site.append("+".join(group))
            patients.append(one.train[np.isin(cohort.site[one.train], group)])
    return Clients(np.array(task), tuple(site), tuple(patients))


class Driver:
    """Runs the rounds of a list of tasks under one strategy."""

    def __init__(self, engine: Engine, cohort: Cohort, moments: Moments, strategy: Strategy, ledger: Ledger) -> None:
        self.engine, self.cohort, self.moments, self.strategy, self.ledger = engine, cohort, moments, strategy, ledger
        self.training = engine.training
        self.bag = np.array([engine.store.index()[patient] for patient in cohort.patients])

    def run(self, tasks: Sequence[Task], phase: str, steps: Steps) -> Phase:
        """Every task for its number of rounds; a task that is finished costs nothing more."""
        clients = clients_of(tasks, self.cohort, self.strategy)
        mean, deviation = self._scales(tasks)
        rows = torch.from_numpy(np.stack([self._initial(task) for task in tasks]))
        result = Phase(rows, mean, deviation)
        rounds = max(task.rounds for task in tasks)
        result.losses = np.full((len(tasks), rounds), np.inf)
        result.counts = np.array([len(task.watched) for task in tasks])
        learners = self._learners(clients, result)
        state = OptimiserState.zeros(learners.rows)
        for number in range(1, rounds + 1):
            live = np.array([task.rounds >= number for task in tasks])
            if self.strategy.federated:  # a site starts every round from the global model, with a fresh optimiser
                learners.rows.copy_(result.rows[torch.from_numpy(clients.task)])
                state = OptimiserState.zeros(learners.rows)
            losses = self._train(learners, state, clients, tasks, live, number)
            self._aggregate(result, learners, clients, live)
            self._record(result, learners, clients, tasks, live, number, phase, losses)
            steps.done(models=int(live.sum()))
        return result

    def _initial(self, task: Task) -> np.ndarray:
        generator = np.random.default_rng(seed_of(self.training.seed, "initial", task.repeat, task.fold))
        return self.engine.layout.flat(self.engine.head.initial(generator))

    def _scales(self, tasks: Sequence[Task]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of every task's training tiles, merged from its sites' moments in the order of their names."""
        width = self.engine.store.width
        if self.training.scaling == "none":
            return torch.zeros(len(tasks), width), torch.ones(len(tasks), width)
        scales = []
        for task in tasks:
            groups = [task.train[self.cohort.site[task.train] == site] for site in task.trained_on]
            scales.append(Moments.stacked([self.moments.merged(self.bag[group]) for group in groups]).scale())
        mean, deviation = (torch.from_numpy(np.stack(part)) for part in zip(*scales, strict=True))
        return mean, deviation

    def _learners(self, clients: Clients, result: Phase) -> Learners:
        count = len(clients.task)
        chosen = torch.from_numpy(clients.task)
        lr = torch.full((count, 1), self.training.lr)
        decay = torch.full((count, 1), self.training.weight_decay)
        return Learners(result.rows[chosen], result.mean[chosen], result.deviation[chosen], lr, decay)

    def _train(
        self,
        learners: Learners,
        state: OptimiserState,
        clients: Clients,
        tasks: Sequence[Task],
        live: np.ndarray,
        number: int,
    ) -> np.ndarray:
        order = self._order(number)
        plans, streams = [], []
        for task, site, patients in zip(clients.task, clients.site, clients.patients, strict=True):
            plan: list[np.ndarray] = []
            for epoch in order if live[task] else []:
                chosen = patients[np.argsort(epoch[patients], kind="stable")]
                plan += [
                    self.bag[chosen[k : k + self.training.batch_size]]
                    for k in range(0, len(chosen), self.training.batch_size)
                ]
            plans.append(plan)
            names = (tasks[task].repeat, tasks[task].fold, tasks[task].inner, site, number)
            streams.append(seed_of(self.training.seed, "dropout", *names))
        return self.engine.train(learners, state, plans, streams)

    def _order(self, number: int) -> list[np.ndarray]:
        """For every local epoch a key of each patient, drawn from the patient's own name; patients are visited by rising key."""
        return [
            np.array([seed_of(self.training.seed, "order", number, epoch, patient) for patient in self.cohort.patients])
            for epoch in range(self.training.local_epochs)
        ]

    def _aggregate(self, result: Phase, learners: Learners, clients: Clients, live: np.ndarray) -> None:
        counts = np.array([len(patients) for patients in clients.patients])
        for task in np.flatnonzero(live).tolist():
            mine = np.flatnonzero(clients.task == task)
            updates = {"row": learners.rows[mine[0] : mine[-1] + 1]}
            weights = shares(torch.from_numpy(counts[mine]))
            result.rows[task] = self.strategy.server_step({"row": result.rows[task]}, updates, weights)["row"]

    def _record(
        self,
        result: Phase,
        learners: Learners,
        clients: Clients,
        tasks: Sequence[Task],
        live: np.ndarray,
        number: int,
        phase: str,
        train_losses: np.ndarray,
    ) -> None:
        """Watch the inner folds with the new global models; a ledger line a site, a table row a site and one for all."""
        everyone = Learners(result.rows, result.mean, result.deviation, learners.lr, learners.decay)
        watched = [self.bag[task.watched] if live[k] else self.bag[:0] for k, task in enumerate(tasks)]
        found = self.engine.logits(everyone, watched)
        for k in np.flatnonzero(live).tolist():
            task = tasks[k]
            mine = np.flatnonzero(clients.task == k)
            counts = [len(clients.patients[i]) for i in mine]
            stated = {"model": task.name, "phase": phase, "round": number}
            digest_now = {"global_sha256": digest([result.rows[k].numpy().tobytes()])}
            for i, count in zip(mine, counts, strict=True):
                sent = digest([learners.rows[i].numpy().tobytes()])
                self.ledger.add(
                    stated | digest_now | {"site": clients.site[i], "patients": count, "update_sha256": sent}
                )
            losses, targets = self._losses(found[k], task)
            result.losses[k, number - 1] = losses.sum()
            site_of = self.cohort.site[task.watched]
            views = [(clients.site[i], train_losses[i], np.isin(site_of, clients.site[i].split("+"))) for i in mine]
            if len(mine) > 1:
                together = float(np.average(train_losses[mine], weights=counts))
                views.append(("+".join(task.trained_on), together, np.ones(len(site_of), bool)))
            for site, train_loss, chosen in views:
                result.table.append(
                    {
                        **stated,
                        "repeat": task.repeat,
                        "fold": task.fold,
                        "site": site,
                        "train_loss": train_loss,
                        "val_loss": losses[chosen].mean() if chosen.any() else float("nan"),
                        "val_auroc": self.engine.endpoint.metric(found[k][chosen], targets[chosen]),
                    }
                )

    def _losses(self, logits: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
        targets = self.cohort.targets[task.watched]
        losses = self.engine.endpoint.losses(torch.from_numpy(logits).double(), torch.from_numpy(targets).double())
        return losses.numpy(), targets
