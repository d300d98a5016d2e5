"""Nested cross-validation -> the models to train: one for each inner fold (selection), then one on all outer training.

Selection: the error on the held-out inner folds (of classes the squared error of the probability, else the loss; see
`Endpoint.errors`), every patient of the outer training set once, all training sites together, is smallest for the chosen
candidate after the chosen number of rounds. `benchmarks/selection.py` compares it with other rules. The patients of the outer fold and of
external sites are in no list made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from mil.endpoints import Endpoint
from mil.errors import MilError, NoInnerFold
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import ModelSpec
from mil.training.cohort import NO_FOLD, TrainingCohort


@dataclass(frozen=True)
class Candidate:
    """One choice of what a search may vary."""

    model: ModelSpec
    lr: float
    weight_decay: float
    server_lr: float | None = None
    """None: the strategy's own."""


@dataclass(frozen=True)
class Group:
    """What a selection is made for: the sites trained on, the repeat and the outer fold."""

    trained_on: tuple[str, ...]
    repeat: int
    fold: int

    @property
    def name(self) -> str:
        """E.g. `A+B/repeat0/fold1`."""
        return f"{'+'.join(self.trained_on)}/repeat{self.repeat}/fold{self.fold}"


@dataclass(frozen=True)
class Task:
    """One model to train: who teaches it, who is watched, how and for how many rounds."""

    group: Group
    candidate: Candidate
    train: np.ndarray
    """Patient numbers."""
    watched: np.ndarray
    rounds: int
    inner: int | None = None
    """Inner fold that is held out; none: a refit."""
    choice: int = 0
    """Number of the candidate."""
    replica: int = 0

    @property
    def name(self) -> str:
        """E.g. `A+B/repeat0/fold1/inner2`, with the candidate and the replica where there are several."""
        return model_name(self.group.name, self.choice, self.inner, self.replica)


def model_name(group: str, choice: int, inner: int | None, replica: int) -> str:
    """The name of a model: that of its group, then those of candidate, inner fold and replica that are not the only ones."""
    parts = {"choice": choice, "inner": inner, "replica": replica}
    return group + "".join(f"/{name}{k}" for name, k in parts.items() if k or (name == "inner" and k is not None))


def candidates(experiment: ExperimentSpec) -> list[Candidate]:
    """The search's lists crossed, the stanza's own values where a list is empty."""
    search, training = experiment.search, experiment.training
    models = (search and search.model) or (experiment.model,)
    lrs = (search and search.lr) or (training.lr,)
    decays = (search and search.weight_decay) or (training.weight_decay,)
    servers = (search and search.server_lr) or (None,)
    return [Candidate(*choice) for choice in product(models, lrs, decays, servers)]


def teachers(sites: Sequence[str], by_site: bool, protocol: str) -> list[tuple[str, ...]]:
    """The sets of sites that models are trained on: each site, all of them, or all but one for each."""
    if by_site:
        return [(site,) for site in sites]
    if protocol == "cross_validation":
        return [tuple(sites)]
    if len(sites) < 3:
        raise MilError(
            f"protocol leave_one_site_out needs three training sites, and there are {len(sites)} ({', '.join(sites)}); with "
            "two, strategy local already judges each site's model on the other"
        )
    return [tuple(other for other in sites if other != site) for site in sites]


def groups(cohort: TrainingCohort, trained_on: Sequence[tuple[str, ...]]) -> list[Group]:
    """Every choice of sites, repeat and outer fold."""
    return [
        Group(sites, repeat, fold)
        for sites in trained_on
        for repeat in range(cohort.outer.shape[1])
        for fold in range(cohort.folds)
    ]


def check_groups(cohort: TrainingCohort, wanted: Sequence[Group], endpoint: Endpoint, where: str) -> None:
    """Raise MilError for the first group whose training patients have targets of which nothing can be learned."""
    for group in wanted:
        seen = cohort.outer_train(group.trained_on, group.repeat, group.fold)
        if len(seen):  # none: said by `inner_tasks`
            endpoint.check(cohort.targets[seen], f"{where}: {group.name}")


def inner_tasks(
    cohort: TrainingCohort, wanted: Sequence[Group], choices: Sequence[Candidate], rounds: int
) -> list[Task]:
    """A task for every group, candidate and inner fold, in this order."""
    tasks = []
    for group in wanted:
        seen = cohort.outer_train(group.trained_on, group.repeat, group.fold)
        inner = cohort.inner[seen, group.repeat, group.fold]
        if (inner == NO_FOLD).any():
            patient = cohort.patients[seen[int(np.argmax(inner == NO_FOLD))]]
            raise MilError(f"bags: patient {patient} has no inner fold for {group.name}; run `mil bag` again")
        usable = [number for number in range(cohort.inner_folds) if (inner == number).any() and (inner != number).any()]
        if not usable:
            raise NoInnerFold(
                f"bags: {group.name}: {len(seen)} training patients leave no inner fold to watch; use fewer folds"
            )
        for choice, candidate in enumerate(choices):
            for fold in usable:
                split = (seen[inner != fold], seen[inner == fold])
                tasks.append(checked(Task(group, candidate, *split, rounds, inner=fold, choice=choice), cohort))
    return tasks


def refit_tasks(cohort: TrainingCohort, chosen: Sequence[Task], replicas: int) -> list[Task]:
    """The chosen tasks on all outer training patients, `replicas` times."""
    tasks = []
    for task in chosen:
        seen = cohort.outer_train(task.group.trained_on, task.group.repeat, task.group.fold)
        whole = replace(task, train=seen, watched=seen[:0], inner=None)
        tasks += [checked(replace(whole, replica=replica), cohort) for replica in range(replicas)]
    return tasks


def select(tasks: Sequence[Task], errors: np.ndarray, counts: np.ndarray) -> list[Task]:
    """For each group a task with the best candidate and number of rounds, the first of equals.

    Errors (tasks, rounds) and counts (tasks, rounds) are summed over each task's watched patients; infinite after the
    last round that was tried. Rounds after which a model had diverged are out of the choice.
    """
    tried: dict[Group, list[list[int]]] = {}
    for folds in by_choice(tasks):
        tried.setdefault(tasks[folds[0]].group, []).append(folds)
    chosen = []
    for group, members in tried.items():
        choice, rounds, error = least([mean_curve(errors[folds], counts[folds]) for folds in members])
        task = tasks[members[choice][0]]
        if not np.isfinite(error):
            raise MilError(f"{group.name}: {no_choice(task.candidate.lr)}")
        chosen.append(replace(task, rounds=rounds))
    return chosen


def least(curves: Sequence[Sequence[float] | np.ndarray]) -> tuple[int, int, float]:
    """Number of the candidate and of rounds with the least error, and this; the first of equals.

    Each candidate's errors after each round (rounds,); infinite where there is none.
    """
    lowest = [float(np.min(curve)) for curve in curves]
    choice = int(np.argmin(lowest))
    return choice, int(np.argmin(curves[choice])) + 1, lowest[choice]


def no_choice(lr: float) -> str:
    """Why nothing can be chosen, and the way out."""
    return (
        f"no candidate has a finite error on the inner folds after any round (lr {lr:g}); lower training.lr, set training.clip_norm, "
        "or check the labels of these patients"
    )


def by_choice(tasks: Sequence[Task]) -> list[list[int]]:
    """Numbers of the tasks of each group and candidate: its inner folds."""
    members: dict[tuple[Group, int], list[int]] = {}
    for number, task in enumerate(tasks):
        members.setdefault((task.group, task.choice), []).append(number)
    return list(members.values())


def stalled(curve: Sequence[float] | np.ndarray, patience: int) -> bool:
    """Whether the least error of `curve`, a value per round, is `patience` rounds old or older."""
    return len(curve) - 1 - int(np.argmin(curve)) >= patience


def mean_curve(errors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean error after each round (rounds,) from sums over watched patients (tasks, rounds); infinite where it is not finite."""
    with np.errstate(invalid="ignore"):
        curve = errors.sum(0) / counts.sum(0)  # nothing to count: NaN
    return np.where(np.isfinite(curve), curve, np.inf)


def checked(task: Task, cohort: TrainingCohort) -> Task:
    """Return the task. Raise MilError if a patient is in both lists, if none is trained on, or if the outer fold is in a list."""
    allowed = cohort.outer_train(task.group.trained_on, task.group.repeat, task.group.fold)
    seen = np.concatenate([task.train, task.watched])
    if not len(task.train) or len(np.unique(seen)) != len(seen) or not np.isin(seen, allowed).all():
        raise MilError(
            f"bags: {task.name}: its training and validation patients overlap, are none or belong to the outer fold"
        )
    return task
