"""What a run would miss after hours is said before it begins, in one line."""

import pytest
from features_alone import make_features

from mil.config import Config, merge, parse, read_yaml
from mil.errors import MilError
from mil.readiness import check_readiness
from mil.slides.sheet import read_cohort


def check(tmp_path, repository, over, spoil=lambda text: text):
    settings = merge(read_yaml(repository / "configs/experiments.yaml"), make_features(tmp_path, patients_a_site=2))
    config = parse(Config, merge(settings, over), "here")
    patients = tmp_path / "patients.csv"
    patients.write_text(spoil(patients.read_text()))
    check_readiness(config, read_cohort(config.slides, ["response"]))


def test_a_cohort_with_all_that_it_names_is_ready(tmp_path, repository):
    check(tmp_path, repository, {"metrics": {"clinical": ["age"], "subgroups": ["site", "age"]}})


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"metrics": {"clinical": ["aeg"]}},
            r"metrics.clinical: patient table .* column 'aeg' is missing; did you mean 'age'",
        ),
        ({"metrics": {"subgroups": ["grade"]}}, "metrics.subgroups: .* column 'grade' is missing"),
        ({"metrics": {"time": "months", "event": "died"}}, "metrics.time: .* column 'months' is missing"),
        (
            {"experiments": {"attention_pooled": {"covariates": ["ki67"]}}},
            "experiments.attention_pooled.covariates: .* column 'ki67' is missing",
        ),
        (
            {"endpoints": {"response": {"kind": "survival", "column": "age", "event": "died"}}},
            "endpoints.response.event: .* column 'died' is missing",
        ),
        (
            {"slides": {"roles": {"north": "external", "south": "external"}}},
            "none of the sites east, north, south has the role train",
        ),
        ({"figures": {"main": "attention_poled"}}, "not under run; did you mean 'attention_pooled'"),
        (
            {"slides": {"features": {"east": {"folder": "nowhere"}}}},
            "slides.features.east.folder: nowhere does not exist",
        ),
        ({"truth": {"table": "none.csv", "square_um": 100.0}}, "truth.table: none.csv does not exist"),
        ({"results": "/dev/null/results"}, "results: .* cannot be written, as /dev/null is no folder"),
        ({"figures": {"reviews": ["review.csv"]}}, "figures.reviews: review.csv does not exist"),
    ],
)
def test_what_is_not_there_is_said_with_the_key_that_names_it(tmp_path, repository, over, said):
    with pytest.raises(MilError, match=said):
        check(tmp_path, repository, over)


@pytest.mark.parametrize(
    ("metrics", "cell", "said"),
    [
        ({"clinical": ["age"]}, "NA", "metrics.clinical: column 'age' holds numbers, but 'NA' for patient 'south-p1'"),
        (
            {"annotation": "age"},
            "<5",
            "metrics.annotation: column 'age' holds numbers, but '<5' for patient 'south-p1'",
        ),
        (
            {"subgroups": ["age"]},
            "inf",
            "metrics.subgroups: column 'age' holds numbers, but 'inf' for patient 'south-p1'",
        ),
        ({"time": "age", "event": "response"}, "unknown", "patient 'south-p1': age = 'unknown'"),
    ],
)
def test_a_word_among_numbers_names_the_patient(tmp_path, repository, metrics, cell, said):
    with pytest.raises(MilError, match=said):
        check(
            tmp_path, repository, {"metrics": metrics}, lambda text: text.replace("south-p1,1,43", f"south-p1,1,{cell}")
        )
