"""Planted leaks are each found, and clean tables and the project's own training are not accused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mil.bags.table import deal_folds, make_bags, outer_folds
from mil.config import EndpointSpec, ExperimentSpec
from mil.leaks.checks import (
    check_bags,
    check_copies,
    check_duplicate_slides,
    findings_table,
)
from mil.leaks.deep_check import trainer_of
from mil.leaks.probe import Scores, probe_training
from mil.rng import rng
from mil.slides.sheet import Cohort

pytestmark = pytest.mark.slow

ENDPOINT = EndpointSpec(folds=3, inner_folds=2)


def cohort(patients_a_site: int = 12) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    rows = [
        (f"{site}{n:02d}", f"{site}{n:02d}-1", site, role, n % 2)
        for site, role in {"A": "train", "B": "train", "C": "external"}.items()
        for n in range(patients_a_site)
    ]
    bags = deal_folds(pd.DataFrame(rows, columns=["patient_id", "slides", "site", "role", "label"]), ENDPOINT)
    features = {
        row.patient_id: (rng(0, "tiles", row.patient_id).normal(size=(6, 8)) + 0.4 * row.label).astype(np.float32)
        for row in bags.itertuples()
    }
    return bags, features


def states(findings) -> list[str]:
    return [one.state for one in findings]


def test_clean_folds_are_clean():
    bags, _ = cohort()
    assert states(check_bags(bags)) == ["ok"]


def test_one_patient_in_two_folds_is_found():
    bags, _ = cohort()
    twice = bags[bags["patient_id"] == "A03"].assign(repeat0=lambda t: (t["repeat0"] + 1) % 3)
    found = check_bags(pd.concat([bags, twice], ignore_index=True))
    assert any(one.state == "leak" and one.subject == "A03" and one.check == "patients" for one in found)


def test_a_slide_of_two_patients_and_a_file_under_two_names_are_found():
    bags, _ = cohort()
    bags.loc[1, "slides"] = bags.loc[0, "slides"]
    assert any(one.check == "slides" for one in check_bags(bags))
    slides = pd.DataFrame({"slide_id": ["a", "b", "c"], "patient_id": ["p", "q", "q"], "fingerprint": ["x", "x", ""]})
    assert "a of p, b of q" in check_duplicate_slides(slides)[0].subject
    assert states(check_duplicate_slides(slides.assign(fingerprint=["x", "y", "y"]))) == ["ok"]


def test_an_outer_fold_in_its_own_inner_folds_is_found():
    bags, _ = cohort()
    row = bags.index[bags["repeat0"] == 1][0]
    bags.loc[row, "repeat0_fold1_inner"] = 0
    found = check_bags(bags)
    assert found[0].state == "leak"
    assert "stands in its inner folds" in found[0].reason


def trainer(leaky: bool):
    """Ridge regressions on mean features; the leaky one chooses its strength on the fold that it is to be judged on."""

    def scores(bags: pd.DataFrame, features, further) -> Scores:
        values = np.stack([features[patient].mean(axis=0) for patient in bags["patient_id"]]).astype(float)
        labels = bags["label"].to_numpy()
        found = {}
        for repeat, fold in outer_folds(bags):
            judged = (bags[f"repeat{repeat}"] == fold).to_numpy()
            watched = judged if leaky else ~judged
            models = [LogisticRegression(C=strength).fit(values[~judged], labels[~judged]) for strength in (0.001, 1.0)]
            losses = [log_loss(labels[watched], model.predict_proba(values[watched])[:, 1]) for model in models]
            best = models[int(np.argmin(losses))]
            found["A+B", repeat, fold] = best.predict_proba(
                np.stack([tiles.mean(axis=0) for tiles in further.values()])
            )[:, 1]
        return found

    return scores


def test_the_test_fold_handed_to_selection_is_found():
    bags, features = cohort()
    found = probe_training(trainer(leaky=True), bags, features, folds=3)
    assert "leak" in states(found)
    assert "training or selection reads them" in next(one for one in found if one.state == "leak").reason
    assert states(probe_training(trainer(leaky=False), bags, features, folds=3)) == ["ok"] * 3
    assert states(probe_training(lambda bags, features, further: {}, bags, features)) == ["suspect"]


@pytest.mark.parametrize("strategy", ["local", "pooled", "fedavg"])
@pytest.mark.parametrize("model", ["mean", "gated_attention"])
def test_our_training_reads_no_patient_that_it_is_judged_on(strategy, model):
    bags, features = cohort()
    experiment = ExperimentSpec.model_validate(
        {"encoder": "e", "endpoint": "r", "model": model, "strategy": strategy, "training": {"rounds": 2}}
    )
    found = probe_training(trainer_of(experiment, ENDPOINT), bags, features)
    assert states(found) == (["ok", "ok"] if strategy == "local" else ["ok"])  # a site's own model reads no other site


def test_a_constant_in_all_log_hazards_accuses_nobody():
    """Cox's loss does not see a constant added to all scores: the optimiser moves it by rounding alone, here by a step of 0.01."""
    bags, _ = cohort(21)
    endpoint = EndpointSpec(kind="survival", column="time", event="event", folds=2, inner_folds=2)
    numbers = np.arange(len(bags))
    timed = bags[["patient_id", "slides", "site", "role"]].assign(label=(numbers % 3 != 0).astype(int))
    timed = deal_folds(timed.assign(time=5 + 3.5 * rng(1, "q").permutation(len(bags))), endpoint)
    features = {one: rng(1, "t", one).normal(size=(24, 32)).astype(np.float32) for one in bags["patient_id"]}
    experiment = ExperimentSpec.model_validate(
        {
            **{"encoder": "e", "endpoint": "r", "model": "gated_attention", "strategy": "pooled"},
            "training": {"rounds": 2, "lr": 1e-2},
        }
    )
    (found,) = probe_training(trainer_of(experiment, endpoint), timed, features)
    assert (found.state, found.value < 1e-5) == ("ok", True)


@pytest.mark.parametrize(
    ("spec", "outcomes"),
    [
        # times are censored by the end of the study, so that turned events are all after the last known time
        (
            {"kind": "survival", "column": "t", "event": "e"},
            lambda n: {"label": n // 3 % 2, "time": [60.0, 5.0 + n][n // 3 % 2]},
        ),
        ({"kind": "regression", "column": "c"}, lambda n: {"label": 1e-9 * (n + 1)}),
        ({"kind": "multiclass", "column": "g", "classes": ["1", "2", "4"]}, lambda n: {"label": [1, 2, 4][n // 3 % 3]}),
    ],
)
@pytest.mark.parametrize("strategy", ["local", "pooled"])
def test_turned_outcomes_are_possible_ones(spec, outcomes, strategy):
    bags, _ = cohort(36)
    endpoint = EndpointSpec(**spec, folds=2, inner_folds=2)
    training = bags.loc[bags["role"] == "train", ["patient_id", "slides", "site", "role"]].reset_index(drop=True)
    known = pd.DataFrame([outcomes(number) for number in range(len(training))])
    dealt = deal_folds(pd.concat([training, known], axis=1), endpoint)
    features = {one: rng(1, "t", one).normal(size=(6, 4)).astype(np.float32) for one in dealt["patient_id"]}
    experiment = ExperimentSpec.model_validate(
        {"encoder": "e", "endpoint": "r", "model": "mean", "strategy": strategy, "training": {"rounds": 2}}
    )
    found = probe_training(trainer_of(experiment, endpoint), dealt, features)
    assert set(states(found)) == {"ok"}
    assert max(one.value for one in found) < 1e-6


def test_training_with_covariates_is_probed_too():
    bags, features = cohort()
    experiment = ExperimentSpec.model_validate(
        {
            **{"encoder": "e", "endpoint": "r", "model": "mean", "strategy": "pooled"},
            **{"covariates": ["age"], "training": {"rounds": 2}},
        }
    )
    aged = bags.assign(age=np.arange(len(bags), dtype=float))
    assert states(probe_training(trainer_of(experiment, ENDPOINT), aged, features)) == ["ok"]


def test_our_training_reads_nothing_of_a_site_that_is_left_out():
    bags, features = cohort()
    three = deal_folds(bags.assign(role="train")[["patient_id", "slides", "site", "role", "label"]], ENDPOINT)
    experiment = ExperimentSpec.model_validate(
        {
            "encoder": "e",
            "endpoint": "r",
            "model": "mean",
            "strategy": "fedavg",
            "protocol": "leave_one_site_out",
            "training": {"rounds": 2},
        }
    )
    found = probe_training(trainer_of(experiment, ENDPOINT), three, features)
    assert [(one.state, one.subject) for one in found] == [
        ("ok", "repeat 0, fold 0, 3 models"),
        ("ok", "site A left out, 3 models"),
    ]


def test_a_site_that_should_be_left_out_and_is_read_is_found():
    def leaky(bags: pd.DataFrame, features, further) -> Scores:
        """Says that site B's model never saw site A, and scales by everybody's features."""
        everyone = np.stack([tiles.mean(axis=0) for tiles in features.values()])
        own = list(bags.loc[bags["site"] == "B", "patient_id"])
        labels = bags.set_index("patient_id")["label"].loc[own].to_numpy()
        values = np.stack([features[patient].mean(axis=0) for patient in own]) - everyone.mean(axis=0)
        model = LogisticRegression().fit(values, labels)
        scores = model.predict_proba(np.stack([tiles.mean(axis=0) for tiles in further.values()]))[:, 1]
        return {("B", repeat, fold): scores for repeat, fold in outer_folds(bags)}

    bags, features = cohort()
    found = probe_training(leaky, bags, features)
    assert ("leak", "site A left out") in [(one.state, one.subject) for one in found]


def test_one_slide_under_two_patients_is_found_by_its_features():
    _, features = cohort()
    tiles = {
        patient: np.repeat(own, 5, axis=0) + rng(0, patient).normal(size=(30, 8)) for patient, own in features.items()
    }
    stored = {patient: own.astype(np.float16) for patient, own in tiles.items()}
    assert states(check_copies("copies", stored.items())) == ["ok"]
    copied = stored | {
        "C03": np.concatenate([stored["A01"][:12], stored["C03"][:5]])
    }  # another site, other tiles besides
    found = check_copies("copies", copied.items())
    assert [(one.state, one.subject) for one in found] == [("leak", "A01 and C03")]
    again = tiles["A01"] * 1.001 + rng(0, "second scan").normal(0, 0.002, (30, 8))
    found = check_copies("copies", (stored | {"B05": again.astype(np.float16)}).items())
    assert [(one.state, one.subject) for one in found] == [("suspect", "A01 and B05")]


def test_a_slide_table_in_any_order_loses_no_slide_and_a_lost_one_is_found():
    """Rows of two patients in turn: a reader that groups neighbours only would keep the last run of each."""
    bags, _ = cohort()
    slides = [
        (f"{patient}-{n}", patient, site)
        for n in range(3)
        for patient, site in zip(bags["patient_id"], bags["site"], strict=True)
    ]
    census = pd.DataFrame(slides, columns=["slide_id", "patient_id", "site"]).assign(state="ok", reason="", num_tiles=9)
    patients = bags[["patient_id"]].assign(response=bags["label"].astype(str))
    roles = {"A": "train", "B": "train", "C": "external"}
    made, _ = make_bags(Cohort(pd.DataFrame(), patients, "patients.csv"), census, roles, ENDPOINT)
    assert (made["slides"].str.split(";").map(len) == 3).all()
    assert states(check_bags(made, census)) == ["ok"]
    made.loc[4, "slides"] = made.loc[4, "slides"].split(";")[-1]
    found = check_bags(made, census)
    assert states(found) == ["suspect", "suspect"]
    assert "not in the bag of patient A04" in found[0].reason


def test_findings_come_worst_first():
    bags, _ = cohort()
    twice = pd.concat([bags, bags.head(1)], ignore_index=True)
    table = findings_table([*check_bags(bags), *check_bags(twice)])
    assert table["state"].tolist() == sorted(table["state"], key=["leak", "suspect", "ok"].index)
