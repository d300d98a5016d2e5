"""Nested cross-validation -> the models to train: one for each inner fold (selection), then one on all outer training.

Number of rounds: the loss on the held-out inner folds, every patient of the outer training set once, summed over the
training sites, is smallest there. The patients of the outer fold and of external sites are in no list made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.errors import MilError
from mil.training.cohort import NO_FOLD, Cohort


@dataclass(frozen=True)
class Task:
    """One model to train: who teaches it, who is watched, for how many rounds."""

    trained_on: tuple[str, ...]
    repeat: int
    fold: int
    inner: int | None
    """Inner fold that is held out; none: the refit."""
    train: np.ndarray
    """Patient numbers."""
    watched: np.ndarray
    rounds: int

    @property
    def name(self) -> str:
        """E.g. `A+B/repeat0/fold1/inner2`."""
        inner = "" if self.inner is None else f"/inner{self.inner}"
        return f"{'+'.join(self.trained_on)}/repeat{self.repeat}/fold{self.fold}{inner}"


def inner_tasks(cohort: Cohort, trained_on: Sequence[tuple[str, ...]], rounds: int) -> list[Task]:
    """A task for every choice of sites, repeat, outer fold and inner fold."""
    tasks = []
    for sites in trained_on:
        for repeat, fold in _outer(cohort):
            seen = cohort.outer_train(sites, repeat, fold)
            inner = cohort.inner[seen, repeat, fold]
            if (inner == NO_FOLD).any():
                patient = cohort.patients[seen[int(np.argmax(inner == NO_FOLD))]]
                raise MilError(
                    f"bags: patient {patient} has no inner fold for repeat {repeat}, fold {fold}; run `mil bag` again"
                )
            usable = [
                number for number in range(cohort.inner_folds) if (inner == number).any() and (inner != number).any()
            ]
            if not usable:
                raise MilError(
                    f"bags: sites {'+'.join(sites)}, repeat {repeat}, fold {fold}: {len(seen)} training patients leave no "
                    "inner fold to watch; use fewer folds"
                )
            for number in usable:
                task = Task(sites, repeat, fold, number, seen[inner != number], seen[inner == number], rounds)
                tasks.append(_checked(task, cohort))
    return tasks


def refit_tasks(cohort: Cohort, chosen: dict[tuple[tuple[str, ...], int, int], int]) -> list[Task]:
    """A task for every (sites, repeat, outer fold) on all its training patients, for the chosen number of rounds."""
    tasks = []
    for (sites, repeat, fold), rounds in chosen.items():
        seen = cohort.outer_train(sites, repeat, fold)
        tasks.append(_checked(Task(sites, repeat, fold, None, seen, seen[:0], rounds), cohort))
    return tasks


def choose_rounds(
    tasks: Sequence[Task], losses: np.ndarray, counts: np.ndarray
) -> dict[tuple[tuple[str, ...], int, int], int]:
    """Losses summed over watched patients (tasks, rounds) and their counts (tasks,) -> best number of rounds, the first of equals."""
    groups: dict[tuple[tuple[str, ...], int, int], list[int]] = {}
    for number, task in enumerate(tasks):
        groups.setdefault((task.trained_on, task.repeat, task.fold), []).append(number)
    return {
        group: 1 + int(np.argmin(losses[members].sum(0) / counts[members].sum())) for group, members in groups.items()
    }


def _outer(cohort: Cohort) -> list[tuple[int, int]]:
    return [(repeat, fold) for repeat in range(cohort.outer.shape[1]) for fold in range(cohort.folds)]


def _checked(task: Task, cohort: Cohort) -> Task:
    """The task, once it is certain that nobody is both taught and watched and that the outer fold is in neither list."""
    allowed = cohort.outer_train(task.trained_on, task.repeat, task.fold)
    seen = np.concatenate([task.train, task.watched])
    if not len(task.train) or len(np.unique(seen)) != len(seen) or not np.isin(seen, allowed).all():
        raise MilError(
            f"bags: {task.name}: its training and validation patients overlap, are none or belong to the outer fold"
        )
    return task
