"""Tasks -> the learners of their sites, laid out as a table of tasks and sites."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mil.rng import rng
from mil.strategies.strategy import Strategy
from mil.training.cohort import TrainingCohort
from mil.training.protocol import Task


@dataclass(frozen=True)
class Clients:
    """Learner `task * sites + site` trains task `task` at site `site`; every task has the same number of sites."""

    tasks: int
    names: tuple[tuple[str, ...], ...]
    """Of each task, what its learners are called: a site, or the sites that one learner sees together."""
    patients: tuple[np.ndarray, ...]
    """Of each learner, its training patients by number."""

    @classmethod
    def of(cls, tasks: Sequence[Task], cohort: TrainingCohort, strategy: Strategy) -> "Clients":
        """A learner for every task and site where the strategy is federated, else one for every task."""
        names, patients = [], []
        for task in tasks:
            sites = task.group.trained_on
            learners = [(name,) for name in sites] if strategy.of_rounds.federated else [sites]
            names.append(tuple("+".join(group) for group in learners))
            patients += [task.train[np.isin(cohort.site[task.train], group)] for group in learners]
        return cls(len(tasks), tuple(names), tuple(patients))

    @property
    def sites(self) -> int:
        """Learners a task."""
        return len(self.patients) // self.tasks

    def task(self, learner: int) -> int:
        """The task of a learner."""
        return learner // self.sites

    def name(self, learner: int) -> str:
        """What a learner is called."""
        return self.names[learner // self.sites][learner % self.sites]

    def learners(self, task: int) -> range:
        """The learners of a task."""
        return range(task * self.sites, (task + 1) * self.sites)

    def counts(self) -> torch.Tensor:
        """Training patients (tasks, sites)."""
        return torch.tensor([len(patients) for patients in self.patients]).view(self.tasks, self.sites)


def participants(sites: int, share: float, seed: int, number: int) -> np.ndarray:
    """Which sites take part in round `number` (sites,) bool: `share` of them, at least one, drawn by the round's name."""
    wanted = max(1, round(share * sites))
    chosen = np.zeros(sites, bool)
    chosen[rng(seed, "participation", number).permutation(sites)[:wanted]] = True
    return chosen


def visits(sites: int, shuffled: bool, seed: int, number: int) -> list[int]:
    """The order in which sites are visited in round `number` of cyclic training."""
    order = rng(seed, "visits", number).permutation(sites) if shuffled else np.arange(sites)
    return order.tolist()
