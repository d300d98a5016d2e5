"""Planted leaks are each found, and clean tables and the project's own training are not accused."""

import numpy as np
import pandas as pd
import pytest

from mil.bags import deal_folds
from mil.config import EndpointSpec, ExperimentSpec
from mil.metrics.baselines.logistic import fit_together, log_loss
from mil.metrics.baselines.protocol import outer_folds
from mil.metrics.deep_check import trainer_of
from mil.metrics.leaks import (
    Scores,
    administrative_inputs,
    check_bags,
    check_duplicate_slides,
    check_inputs,
    findings_table,
    probe_training,
)
from mil.rng import rng

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
            models = [fit_together([values[~judged]], [labels[~judged]], strength) for strength in (0.001, 1.0)]
            losses = [log_loss(labels[watched], model.chance(values[watched])) for model in models]
            best = models[int(np.argmin(losses))]
            found["A+B", repeat, fold] = best.chance(np.stack([tiles.mean(axis=0) for tiles in further.values()]))
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
    assert states(found) == ["ok"]


def test_findings_come_worst_first():
    bags, _ = cohort()
    twice = pd.concat([bags, bags.head(1)], ignore_index=True)
    table = findings_table([*check_bags(bags), *check_bags(twice)])
    assert table["state"].tolist() == sorted(table["state"], key=["leak", "suspect", "ok"].index)
