"""What is written down of every round: the watched errors, a row a site in the round table, a line a site in the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.training.clients import Clients
from mil.training.cohort import TrainingCohort
from mil.training.engine import Engine, Learners
from mil.training.ledger import Ledger, digest
from mil.training.packing import Places
from mil.training.phase import Phase
from mil.training.protocol import Task, by_choice, least, mean_curve, stalled


@dataclass
class Records:
    """Gathers both phases of a run."""

    cohort: TrainingCohort
    endpoint: Endpoint
    bag: np.ndarray
    """Bag number of every patient."""
    places: Places
    """All bags with all their tiles."""
    personal: bool
    """Sites are watched with their own models."""
    table: list[dict[str, object]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    errors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(tasks, rounds) of the present phase, summed over watched patients; infinite where a round was not reached."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    watched: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 1), np.float32))
    """Logits (rounds, watched patients of all tasks one after the other, outputs) of the present phase; NaN where not reached."""
    held: list[np.ndarray] = field(default_factory=list)
    """Of each task the logits of its watched patients after the round that its candidate is best at; see `settle`."""

    def begin(self, tasks: Sequence[Task], clients: Clients) -> None:
        """A new phase."""
        self.tasks, self.clients = tasks, clients
        shape = (len(tasks), max(task.rounds for task in tasks))
        self.errors, self.counts = np.full(shape, np.inf), np.ones(shape)
        self.ends = np.cumsum([len(task.watched) for task in tasks])
        self.watched = np.full((shape[1], int(self.ends[-1]), self.endpoint.outputs), np.nan, np.float32)

    def round(
        self,
        engine: Engine,
        phase: Phase,
        models: Tensor,
        train_losses: np.ndarray,
        active: np.ndarray,
        number: int,
        name: str,
        crossing: int,
    ) -> None:
        """Watch the inner folds with the new models.

        `models` are what would be used now: (tasks x sites, size) where sites have models of their own, else (tasks, size).
        `crossing`: bytes of one model that a site gets from the server in a round, and sends back.
        """
        logits = self._watch(engine, phase, models)
        rows, sent = phase.rows.cpu().numpy(), phase.learners.rows.cpu().numpy()
        alone = phase.rows.shape == phase.learners.rows.shape and torch.equal(phase.rows, phase.learners.rows)
        for k in np.flatnonzero(phase.live).tolist():
            task, learners = self.tasks[k], self.clients.learners(k)
            stated = {"model": task.name, "phase": name, "round": number}
            present = {"global_sha256": digest([rows[k].tobytes()])}
            for site, learner in enumerate(learners):
                patients = len(self.clients.patients[learner])
                if active[k, site] and patients:
                    sha256 = present["global_sha256"] if alone else digest([sent[learner].tobytes()])
                    update: dict[str, object] = {"update_sha256": sha256}
                    if crossing:
                        update |= {"bytes_received": crossing, "bytes_sent": crossing}
                    self.ledger.add(
                        stated | present | update | {"site": self.clients.name(learner), "patients": patients}
                    )
            self.watched[number - 1, self.ends[k] - len(task.watched) : self.ends[k]] = logits[k]
            self._table_rows(stated, k, logits[k], train_losses[k], number, phase)

    def settle(self) -> None:
        """End the phase. Keep the logits of the inner folds only for the rounds that selection may choose."""
        begins = self.ends - [len(task.watched) for task in self.tasks]
        best: dict[int, int] = {}
        for folds in by_choice(self.tasks):
            _, rounds, _ = least([mean_curve(self.errors[folds], self.counts[folds])])
            best |= dict.fromkeys(folds, rounds)
        self.held = [self.watched[best[k] - 1, begins[k] : self.ends[k]] for k in range(len(self.tasks))]

    def stalled(self, tasks: Sequence[Task], number: int, patience: int | None) -> np.ndarray:
        """Tasks whose selection has not become better for `patience` rounds (tasks,) bool."""
        if patience is None:
            return np.zeros(len(tasks), bool)
        stop = np.zeros(len(tasks), bool)
        for folds in by_choice(tasks):
            curve = mean_curve(self.errors[folds, :number], self.counts[folds, :number])
            stop[folds] = stalled(curve, patience)
        return stop

    def _watch(self, engine: Engine, phase: Phase, models: Tensor) -> list[np.ndarray]:
        """Logits of each task's watched patients, in their order."""
        watched = [task.watched if phase.live[k] else task.watched[:0] for k, task in enumerate(self.tasks)]
        if not self.personal:
            first = slice(None, None, self.clients.sites)  # a task's learners share their buffers
            judges = _judges(phase.rows, phase.learners, first)
            return engine.logits(judges, [self.bag[patients] for patients in watched], self.places)
        parts = []
        for learner in range(len(models)):
            patients = watched[self.clients.task(learner)]
            parts.append(patients[self.cohort.site[patients] == self.clients.name(learner)])
        judges = _judges(models, phase.learners, slice(None))
        by_learner = engine.logits(judges, [self.bag[patients] for patients in parts], self.places)
        joined = []
        for k, patients in enumerate(watched):
            logits = np.zeros((len(patients), self.endpoint.outputs), np.float32)
            for learner in self.clients.learners(k):
                logits[np.searchsorted(patients, parts[learner])] = by_learner[learner]
            joined.append(logits)
        return joined

    def _table_rows(
        self, stated: dict[str, object], k: int, logits: np.ndarray, train: np.ndarray, number: int, phase: Phase
    ) -> None:
        """A row a site, and one for all of them together where there are several."""
        task = self.tasks[k]
        site_of = self.cohort.site[task.watched]
        parts = [self._sums(logits, task, site_of == site, k, phase) for site in task.group.trained_on]
        whole = tuple(map(sum, zip(*parts, strict=True)))
        _, self.errors[k, number - 1], self.counts[k, number - 1] = whole
        sizes = np.array([len(self.clients.patients[learner]) for learner in self.clients.learners(k)])
        known = np.isfinite(train)
        mean = float(np.average(train[known], weights=sizes[known])) if known.any() else float("nan")
        rows = [("+".join(task.group.trained_on), mean, *whole, np.ones(len(site_of), bool))]
        if self.clients.sites > 1:
            each = zip(task.group.trained_on, train, parts, strict=True)
            rows = [(site, float(loss), *part, site_of == site) for site, loss, part in each] + rows
        for site, train_loss, loss, error, count, chosen in rows:
            targets = self.cohort.targets[task.watched[chosen]]
            self.table.append(
                {
                    **stated,
                    "repeat": task.group.repeat,
                    "fold": task.group.fold,
                    "site": site,
                    "train_loss": train_loss,
                    "val_loss": loss / count if count else float("nan"),
                    "val_error": error / count if count else float("nan"),
                    "val_auroc": self.endpoint.metric(logits[chosen], targets) if chosen.any() else float("nan"),
                }
            )

    def _sums(
        self, logits: np.ndarray, task: Task, chosen: np.ndarray, k: int, phase: Phase
    ) -> tuple[float, float, float]:
        """Summed loss and error of some watched patients, as one site sees them, and the number to divide them by."""
        targets = torch.from_numpy(self.cohort.targets[task.watched[chosen]]).double()
        if self.endpoint.scaled:
            buffers = phase.learners.buffers
            mean, deviation = (
                buffers[f"target.{name}"][k * self.clients.sites].cpu().double() for name in ("mean", "deviation")
            )
            targets = (targets - mean) / deviation
        return self.endpoint.sums(logits[chosen], targets)


def _judges(rows: Tensor, learners: Learners, chosen: slice) -> Learners:
    """Learners that only apply `rows`, with the buffers of the chosen ones."""
    some = learners[chosen]
    return Learners(rows, some.buffers, some.lr, some.decay, some.balance)
