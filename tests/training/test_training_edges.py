"""Cohorts as they should not be: either they train, or one line says what is wrong and what to do."""

import numpy as np
import pandas as pd
import pytest
import torch
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.bags.table import deal_folds
from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.training.protocol import Candidate, Group, Task, mean_curve, select
from mil.training.run import train
from mil.training.store import FeatureStore

BAGS, ARRAYS = make_cohort()
ROWS, STORE = training_part(BAGS, ARRAYS)
FEW = {"rounds": 2, "local_epochs": 1}


def run_of(rows, endpoint=ENDPOINT, **changes):
    store = FeatureStore.of({patient: ARRAYS[patient] for patient in rows["patient_id"]}, {"encoder": "e"})
    changes["training"] = FEW | changes.get("training", {})
    return train(experiment(**changes), endpoint, rows, store, quiet())


def first_of(site, patients):
    return ROWS[(ROWS["site"] != site) | (ROWS["patient_id"] < f"{site}{patients:02d}")]


@pytest.mark.parametrize("strategy", ["pooled", "fedavg", "fedprox", "cyclic", "median", "fedper"])
def test_one_patient_at_a_site_is_enough_where_sites_train_together(strategy):
    run = run_of(first_of("B", 1), strategy=strategy)
    assert all(torch.isfinite(weight).all() for weight in run.families[0].weights.values())


def test_one_patient_at_a_site_cannot_train_alone():
    with pytest.raises(MilError, match=r"B/repeat0/fold1: all 1 training patients have the same label.*role external"):
        run_of(first_of("B", 1), strategy="local")


def test_more_folds_than_patients_leave_some_folds_empty():
    endpoint = EndpointSpec(folds=9, inner_folds=7)
    rows = deal_folds(
        ROWS[ROWS["patient_id"].isin(["A00", "A01", "A02", "A03"])][["patient_id", "slides", "site", "role", "label"]],
        endpoint,
    )
    run = run_of(rows, endpoint)
    store = FeatureStore.of({patient: ARRAYS[patient] for patient in rows["patient_id"]}, {"encoder": "e"})
    found = predict(run, rows, store).table
    assert sorted(found["patient_id"]) == ["A00", "A01", "A02", "A03"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("binary", {"label": 1}, "all 16 training patients have the same label"),
        ("multiclass", {"label": "a"}, "all 16 training patients have the same label"),
        ("regression", {"label": 3.5}, "all 16 training patients have the same label"),
        ("survival", {"label": 0, "time": 3}, "16 training patients have 0 events"),
        (
            "survival",
            {"label": 1, "time": 3},
            "16 events in column 'dead' and nobody was followed up after one (column 'response' is 3 to 3)",
        ),
    ],
)
def test_labels_of_which_nothing_can_be_learned_are_refused(kind, change, said):
    further = {"multiclass": {"classes": ("a", "b")}, "survival": {"event": "dead"}}.get(kind, {})
    endpoint = EndpointSpec(kind=kind, folds=3, inner_folds=2, **further)
    with pytest.raises(MilError, match=r"bags: A\+B/repeat0/fold0: ") as caught:
        run_of(ROWS.assign(**change), endpoint)
    assert said in str(caught.value)
    assert "use fewer folds" in str(caught.value)


def test_one_class_in_an_inner_fold_is_no_obstacle():
    run = run_of(ROWS.assign(label=ROWS["patient_id"].isin(["A01", "A03"]).astype(int)))
    inner = run.rounds[run.rounds["phase"] == "inner"]
    assert inner["val_auroc"].isna().any()
    assert inner[["val_loss", "val_error"]].notna().all(axis=None)


def test_infinite_covariates_name_their_patient():
    with pytest.raises(MilError, match="patient B03: covariate age is 'inf', not a number"):
        run_of(ROWS.assign(age=np.where(ROWS["patient_id"] == "B03", "inf", "50")), covariates=["age"])


def test_bags_without_tiles_or_of_several_widths_are_refused():
    with pytest.raises(CorruptFile, match="patient b have no tile"):
        FeatureStore.of({"a": np.zeros((2, 3)), "b": np.zeros((0, 3))})
    with pytest.raises(MilError, match=r"\[\(3,\), \(4,\)\]"):
        FeatureStore.of({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))})
    with pytest.raises(MilError, match="these have none"):
        FeatureStore.of({})


def test_a_candidate_that_diverges_is_not_chosen_and_a_search_of_such_is_refused():
    wild = {"optimiser": "sgd", "rounds": 4}
    found = run_of(ROWS, model="mean", training=wild, search={"lr": [1e30, 0.1]})
    assert set(found.models["lr"]) == {0.1}
    with pytest.raises(MilError, match=r"A\+B/repeat0/fold0: no candidate has a finite error.*lower training.lr"):
        run_of(ROWS, model="max", training=wild | {"lr": 1e38})


def test_rounds_before_a_divergence_may_be_chosen():
    group, nothing = Group(("A",), 0, 0), np.zeros(0, np.int64)
    tasks = [
        Task(group, Candidate(experiment().model, lr, 0.0), nothing, nothing, 3, inner=0, choice=k)
        for k, lr in enumerate((1.0, 0.1))
    ]
    losses = np.array([[np.nan, np.nan, np.nan], [5.0, 4.0, np.nan]])
    (best,) = select(tasks, losses, np.ones((2, 3)))
    assert (best.choice, best.rounds) == (1, 2)
    assert mean_curve(losses[1:], np.array([[1.0, 2.0, 1.0]])).tolist() == [5, 2, np.inf]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "survival", "regression"])
def test_enough_is_enough(kind):
    further = {"multiclass": {"classes": ("a", "b")}, "survival": {"event": "dead"}}.get(kind, {})
    endpoint = build_endpoint(EndpointSpec(kind=kind, **further))
    two = pd.DataFrame(
        {"patient_id": ["p", "q"], "label": ["a", "b"] if kind == "multiclass" else [1, 0], "time": [1, 2]}
    )
    endpoint.check(endpoint.targets(two), "A")
