"""Inputs that encode the label are each found, and innocent columns, file names and bag sizes are not accused."""

import os

import pandas as pd
import pytest
from test_leaks import cohort, states

from mil.leaks.checks import (
    administrative_inputs,
    check_inputs,
    text_inputs,
)
from mil.rng import rng

pytestmark = pytest.mark.slow


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
