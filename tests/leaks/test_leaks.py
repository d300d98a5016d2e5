"""Planted leaks are each found, and clean tables and the project's own training are not accused."""

import os

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mil.bags.table import deal_folds, make_bags, outer_folds
from mil.config import EndpointSpec, ExperimentSpec
from mil.leaks.checks import (
    administrative_inputs,
    check_bags,
    check_copies,
    check_duplicate_slides,
    check_inputs,
    findings_table,
    text_inputs,
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


def test_a_feature_that_encodes_the_label_is_found_and_noise_is_not():
    bags, _ = cohort(30)
    labels = bags.set_index("patient_id")["label"]
    stream = rng(0, "inputs")
    inputs = pd.DataFrame(stream.normal(size=(len(labels), 200)), index=labels.index)
    assert states(check_inputs("features", inputs, labels)) == ["ok"]
    inputs["residual_tumour"] = -labels + stream.normal(0, 0.1, len(labels))
    found = check_inputs("patient table", inputs, labels)
    assert [(one.subject, one.state) for one in found] == [("residual_tumour", "leak")]
    assert "leave it out" in found[0].reason


def test_a_bag_size_that_encodes_the_label_is_found():
    bags, _ = cohort(40)
    stream = rng(0, "sizes")
    slides = pd.DataFrame(
        {
            "slide_id": bags["slides"],
            "patient_id": bags["patient_id"],
            "num_tiles": stream.integers(100, 900, len(bags)),
            "bytes": stream.integers(10**6, 10**7, len(bags)),
        }
    )
    labels = bags.set_index("patient_id")["label"]
    ids = bags.assign(patient_id=[f"p{n}" for n in stream.permutation(len(bags))])
    slides["patient_id"] = ids["patient_id"]
    labels.index = pd.Index(ids["patient_id"])
    shuffled = slides.sample(frac=1, random_state=0)
    assert states(check_inputs("files", administrative_inputs(shuffled, ids), labels, innocent=True)) == ["ok"]
    shuffled["num_tiles"] += 600 * labels.reindex(shuffled["patient_id"]).to_numpy()
    found = check_inputs("files", administrative_inputs(shuffled, ids), labels, innocent=True)
    assert [(one.subject, one.state) for one in found] == [("num_tiles", "suspect")]


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


def test_a_leak_of_one_site_is_found_there():
    bags, _ = cohort(30)
    known = bags.set_index("patient_id")
    stream = rng(0, "one site")
    column = pd.Series(stream.normal(size=len(known)), known.index)
    column[known["site"] == "B"] += 6 * known["label"][known["site"] == "B"]
    inputs = pd.DataFrame({"ki67": column, "age": stream.normal(size=len(known))})
    assert states(check_inputs("patient table", inputs, known["label"])) == ["ok"]  # over all sites it hides
    found = check_inputs("patient table", inputs, known["label"], known["site"])
    assert [(one.subject, one.state) for one in found] == [("ki67", "leak")]
    assert "at B" in found[0].reason


@pytest.mark.repeated
def test_chance_with_few_patients_and_many_columns_is_no_leak():
    """Six patients a class and 500 columns: some rank perfectly by chance. 8 clean cohorts, no column accused."""
    accused = 0
    labels = pd.Series([0, 1] * 6, [f"p{n}" for n in range(12)])
    for number in range(8 * int(os.environ.get("REPEATS", "1"))):
        inputs = pd.DataFrame(rng(0, "few", number).normal(size=(12, 500)), index=labels.index)
        found = check_inputs("features", inputs, labels, pd.Series("A", labels.index))
        accused += any(one.state == "leak" for one in found)
    assert accused == 0


def test_sites_that_differ_in_size_and_response_are_no_suspects():
    """Files of site A are larger and its patients respond more often: that tells the site, not the label."""
    bags, _ = cohort(40)
    stream = rng(0, "shift")
    sites = bags.set_index("patient_id")["site"]
    labels = (stream.random(len(sites)) < sites.map({"A": 0.8, "B": 0.4, "C": 0.2})).astype(int)
    inputs = pd.DataFrame({"bytes": sites.map({"A": 9.0, "B": 5.0, "C": 2.0}) + stream.normal(size=len(sites))})
    assert states(check_inputs("files", inputs, labels, innocent=True)) == ["suspect"]
    assert states(check_inputs("files", inputs, labels, sites, innocent=True)) == ["ok"]


@pytest.mark.extended
def test_innocent_inputs_are_accused_as_rarely_as_said():
    """200 clean cohorts: at most 1 % by the threshold; 5 or more would be chance of one in two hundred."""
    bags, _ = cohort(20)
    sites, accused = bags.set_index("patient_id")["site"], 0
    for number in range(200):
        stream = rng(0, "clean", number)
        labels = pd.Series(stream.permutation(bags["label"].to_numpy()), sites.index)
        inputs = pd.DataFrame(stream.integers(0, 40, (len(sites), 8)).astype(float), index=sites.index)
        accused += states(check_inputs("files", inputs, labels, sites, innocent=True)) != ["ok"]
    assert accused <= 5


@pytest.mark.parametrize(
    "named",
    [
        lambda row: f"/scans/{'responder' if row.label else 'other'}/{row.patient_id}.svs",
        lambda row: f"/scans/{row.patient_id}_{'pCR' if row.label else 'RD'}.svs",
        lambda row: f"/scans/{'x' * (3 + row.label)}/{row.patient_id}.svs",
    ],
)
def test_a_file_name_that_encodes_the_label_is_found(named):
    bags, _ = cohort(20)
    known = bags.set_index("patient_id")
    clean = text_inputs({row.patient_id: f"/scans/{row.site}/{row.patient_id}.svs" for row in bags.itertuples()})
    assert states(check_inputs("names", clean, known["label"], known["site"], innocent=True)) == ["ok"]
    words = text_inputs({row.patient_id: named(row) for row in bags.itertuples()})
    found = check_inputs("names", words, known["label"], known["site"], innocent=True)
    assert {one.state for one in found} == {"leak"}


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


def test_a_small_site_is_judged_as_its_size_allows_or_said_not_to_be():
    """Of one column: 3 against 4 patients can be suspect, 2 against 2 or one class cannot."""
    sizes = {"A": (15, 15), "B": (3, 4), "C": (2, 2), "D": (6, 0)}
    rows = [(site, label) for site, numbers in sizes.items() for label in (0, 1) for _ in range(numbers[label])]
    bags = pd.DataFrame(rows, columns=["site", "label"])
    column = pd.Series(rng(0, "small").normal(size=len(bags)))
    inputs = pd.DataFrame({"ki67": column.where(bags["site"] != "B", 9.0 * bags["label"])})
    found = {one.subject: one for one in check_inputs("patient table", inputs, bags["label"], bags["site"])}
    assert {name: one.state for name, one in found.items()} == {
        **{"ki67": "suspect", "C": "not judged", "D": "not judged"},
    }
    assert found["ki67"].p >= 2 / 35  # exact: one order of 35 is this one, one is its opposite
    assert "has 2 positive and 2 negative patients" in found["C"].reason
    many = pd.DataFrame({n: rng(0, "many", n).normal(size=len(bags)) for n in range(50)})
    states_of = {one.subject: one.state for one in check_inputs("features", many, bags["label"], bags["site"])}
    assert states_of == {"50 inputs": "ok", "B": "not judged", "C": "not judged", "D": "not judged"}
