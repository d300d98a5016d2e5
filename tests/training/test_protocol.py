"""Which models are trained, on whom, and which is chosen; learning rates and lengths of gradients: by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_cohort import experiment, make_cohort

from mil.config import EndpointSpec
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.training.cohort import TrainingCohort
from mil.training.optimisers import clip, schedule
from mil.training.protocol import (
    Group,
    Task,
    by_choice,
    candidates,
    checked,
    groups,
    inner_tasks,
    least,
    mean_curve,
    model_name,
    refit_tasks,
    select,
    teachers,
)

FOLDS = EndpointSpec(folds=2, inner_folds=3)
BAGS, _ = make_cohort(patients_a_site=18, endpoint=FOLDS)
COHORT = TrainingCohort.of(BAGS[BAGS["role"] == "train"], FOLDS, build_endpoint(FOLDS))
(CHOICE,) = candidates(experiment())
BOTH = Group(("A", "B"), 0, 1)


def task(choice: int = 0, inner: int | None = 0, group: Group = BOTH) -> Task:
    nobody = np.zeros(0, np.int64)
    return Task(group, replace(CHOICE, lr=0.1 * (choice + 1)), nobody, nobody, 9, inner=inner, choice=choice)


def test_names_say_what_is_not_the_only_one():
    assert BOTH.name == "A+B/repeat0/fold1"
    assert model_name("g", 0, None, 0) == "g"
    assert model_name("g", 0, 0, 0) == "g/inner0"
    assert model_name("g", 2, 1, 3) == "g/choice2/inner1/replica3"
    assert task(1, None).name == "A+B/repeat0/fold1/choice1"


def test_a_search_is_the_lists_crossed_and_the_stanza_fills_the_rest():
    assert (CHOICE.lr, CHOICE.server_lr) == (experiment().training.lr, None)
    search = {"lr": [0.1, 0.2], "weight_decay": [0.0, 0.5]}
    found = candidates(experiment(search=search))
    assert [(one.lr, one.weight_decay) for one in found] == [(0.1, 0.0), (0.1, 0.5), (0.2, 0.0), (0.2, 0.5)]
    assert {one.model for one in found} == {experiment().model}


def test_who_is_trained_on():
    sites = ("A", "B", "C")
    assert teachers(sites, True, "cross_validation") == [("A",), ("B",), ("C",)]
    assert teachers(sites, False, "cross_validation") == [sites]
    assert teachers(sites, False, "leave_one_site_out") == [("B", "C"), ("A", "C"), ("A", "B")]
    with pytest.raises(MilError, match="needs three training sites"):
        teachers(("A", "B"), False, "leave_one_site_out")
    assert groups(COHORT, [("A",), ("A", "B")]) == [
        Group(one, 0, fold) for one in (("A",), ("A", "B")) for fold in (0, 1)
    ]


def test_inner_models_learn_from_all_but_the_fold_they_are_watched_on():
    choices = [CHOICE, replace(CHOICE, lr=0.5)]
    found = inner_tasks(COHORT, [BOTH], choices, 7)
    assert [(one.choice, one.inner, one.rounds) for one in found] == [
        (c, fold, 7) for c in (0, 1) for fold in (0, 1, 2)
    ]
    seen = COHORT.outer_train(BOTH.trained_on, 0, 1)
    for one in found:
        assert one.candidate == choices[one.choice]
        fold = COHORT.inner[seen, 0, 1]
        assert one.watched.tolist() == seen[fold == one.inner].tolist()
        assert one.train.tolist() == seen[fold != one.inner].tolist()
    refits = refit_tasks(COHORT, [replace(found[4], rounds=3)], 2)
    assert [(one.replica, one.inner, one.rounds, one.choice) for one in refits] == [(0, None, 3, 1), (1, None, 3, 1)]
    assert all(one.train.tolist() == seen.tolist() and not len(one.watched) for one in refits)


def test_an_inner_fold_that_nobody_of_these_sites_is_in_is_left_out():
    inner = COHORT.inner.copy()
    of_a = COHORT.outer_train(("A",), 0, 1)
    inner[of_a, 0, 1] = 1 + np.arange(len(of_a)) % 2
    found = inner_tasks(replace(COHORT, inner=inner), [Group(("A",), 0, 1)], [CHOICE], 1)
    assert [one.inner for one in found] == [1, 2]
    inner[of_a, 0, 1] = 2
    with pytest.raises(MilError, match="leave no inner fold to watch"):
        inner_tasks(replace(COHORT, inner=inner), [Group(("A",), 0, 1)], [CHOICE], 1)
    inner[of_a[3], 0, 1] = -1
    with pytest.raises(MilError, match=f"patient {COHORT.patients[of_a[3]]} has no inner fold for A/repeat0/fold1"):
        inner_tasks(replace(COHORT, inner=inner), [Group(("A",), 0, 1)], [CHOICE], 1)


def test_a_task_with_a_patient_twice_or_of_the_outer_fold_or_nobody_is_refused():
    seen = COHORT.outer_train(BOTH.trained_on, 0, 1)
    outer = next(number for number in range(len(COHORT.patients)) if number not in seen)
    good = replace(task(), train=seen[:4], watched=seen[4:])
    assert checked(good, COHORT) is good
    fewer = replace(good, watched=seen[4:6])  # an inner fold need not hold all others
    assert checked(fewer, COHORT) is fewer
    for change in (
        {"train": seen[:5]},
        {"train": seen[:0]},
        {"watched": np.array([outer])},
        {"train": np.array([outer])},
    ):
        with pytest.raises(MilError, match="overlap, are none or belong to the outer fold"):
            checked(replace(good, **change), COHORT)


def test_the_curve_is_the_mean_over_all_watched_patients():
    losses = np.array([[4.0, 3.0, np.nan, 0.0], [2.0, 1.0, 1.0, 0.0]])
    counts = np.array([[2.0, 2.0, 2.0, 0.0], [1.0, 3.0, 1.0, 0.0]])
    assert mean_curve(losses, counts).tolist() == [2.0, 0.8, np.inf, np.inf]


def test_the_best_candidate_and_its_number_of_rounds_are_chosen_in_each_group():
    other = Group(("A",), 0, 0)
    tasks = [task(0, 0), task(0, 1), task(1, 0), task(1, 1), task(0, 0, other), task(1, 0, other)]
    losses = np.array([[9, 5, 8], [9, 5, 8], [9, 9, 4], [9, 9, 5.5], [1, 1, 1], [1, 3, 3]], float)
    counts = np.ones((6, 3))
    assert by_choice(tasks) == [[0, 1], [2, 3], [4], [5]]
    assert [least([mean_curve(losses[own], counts[own])]) for own in by_choice(tasks)] == [
        (0, 2, 5.0), (0, 3, 4.75), (0, 1, 1.0), (0, 1, 1.0)
    ]  # fmt: skip
    found = select(tasks, losses, counts)
    assert [(one.group, one.choice, one.rounds) for one in found] == [(BOTH, 1, 3), (other, 0, 1)]
    counts[2] = 3.0  # 9 + 9, 9 + 9, 4 + 5.5 of four patients
    assert least([mean_curve(losses[2:4], counts[2:4])])[2] == 9.5 / 4
    with pytest.raises(MilError, match="A/repeat0/fold0: no candidate has a finite error"):
        select(tasks[4:], np.full((2, 3), np.inf), counts[4:])


def test_gradients_are_shortened_to_the_norm_and_never_lengthened():
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clip(gradient, 1.0)
    torch.testing.assert_close(gradient, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    rows = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for row, value in zip(rows, ([3.0, 4.0], [0.3, 0.4]), strict=True):
        row.grad = torch.tensor(value)
        torch.nn.utils.clip_grad_norm_([row], 1.0)
    assert torch.equal(gradient, torch.stack([row.grad for row in rows]))


def test_learning_rates_rise_and_fall_by_hand():
    assert [schedule("constant", done, 4, 0) for done in range(4)] == [1.0] * 4
    assert [schedule("linear", done, 4, 0) for done in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule("linear", done, 4, 2) for done in range(4)] == pytest.approx([1 / 3, 0.75 * 2 / 3, 0.5, 0.25])
    assert schedule("cosine", 1, 4, 0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
