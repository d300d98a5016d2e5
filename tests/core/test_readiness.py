"""What a run would miss after hours is said before it begins, in one line."""

import pandas as pd
import pytest
from features_alone import make_features

from mil.config import Config, merge, parse, read_yaml
from mil.errors import MilError
from mil.readiness import check_readiness, checked_cohort
from mil.slides.sheet import read_cohort


def check(tmp_path, repository, over, spoil=lambda text: text):
    settings = merge(read_yaml(repository / "configs/experiments.yaml"), make_features(tmp_path))
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
        ({"metrics": {"subgroups": ["patient_id"]}}, "metrics.subgroups: .* column 'patient_id' is missing"),
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
        (
            {"encoders": {"uni": {"name": "uni2_h"}}},
            r"slides.features.\w+: .*: has 1024 numbers a tile, but uni2_h .* gives 1536",
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
    ("kind", "column", "said"),
    [
        ({"kind": "survival", "event": "response"}, "age", "endpoints.response: .* nobody was followed up after one"),
        ({"kind": "regression"}, "age", "endpoints.response: .* all 16 training patients have the same label"),
    ],
)
def test_labels_of_which_nothing_can_be_learned_are_said(tmp_path, repository, kind, column, said):
    def spoil(text):
        head, *rows = text.splitlines()
        return "\n".join([head, *(f"{row.rpartition(',')[0]},50" for row in rows)])

    with pytest.raises(MilError, match=said):
        check(tmp_path, repository, {"endpoints": {"response": {**kind, "column": column}}}, spoil)


def died_at(*times):
    """The column `age` of a site's patients p0, p1, ... becomes these times, one after the other."""

    def spoil(text):
        head, *rows = text.splitlines()
        cells = [row.split(",") for row in rows]
        return "\n".join([head, *(f"{name},{event},{times[int(name[-1])]}" for name, event, _ in cells)])

    return spoil


SURVIVAL = {"kind": "survival", "column": "age", "event": "response"}


@pytest.mark.parametrize(
    ("endpoint", "experiment", "times", "said"),
    [
        ({}, {}, [50] * 8, r"training sites: 16 .* 8 events in column 'response' .* \(column 'age' is 50 to 50\)"),
        # who was followed longer is in one fold of two, at both sites
        (
            {},
            {},
            [20] * 7 + [90],
            r"experiment attention_pooled: north\+south/repeat0/fold\d: 8 .* \(column 'age' is 20 to 20\)",
        ),
        (
            {"kind": "regression"},
            {},
            [20] * 7 + [90],
            r"fold\d: all 8 training patients have the same label in column 'age'",
        ),
        (
            {"negative": ["0", "1"], "positive": ["2"]},
            {},
            range(10, 18),
            r"site north: all 8 patients have response = 0 or 1",
        ),
    ],
    ids=["tied", "tied-but-in-one-fold", "number", "no-event"],
)
def test_times_without_an_order_are_said_before_the_first_tile(tmp_path, repository, endpoint, experiment, times, said):
    over = {"endpoints": {"response": {**SURVIVAL, **endpoint}}, "experiments": {"attention_pooled": experiment}}
    said = rf"endpoints.response.*: patient table .*patients.csv: .*{said}.*(external|external,.*)"
    with pytest.raises(MilError, match=said) as raised:
        check(tmp_path, repository, over, died_at(*times))
    assert "\n" not in str(raised.value)


def test_a_site_without_an_order_is_said_where_it_is_trained_alone(tmp_path, repository):
    def spoil(text):
        return "\n".join(
            f"{row.rpartition(',')[0]},50" if row.startswith("south") else row for row in text.splitlines()
        )

    over = {"endpoints": {"response": SURVIVAL}}
    check(tmp_path, repository, over, spoil)  # pooled and FedAvg learn the order of the other site's patients
    over["experiments"] = {"attention_fedavg": {"strategy": "local"}}
    said = r"patient table .*: experiment attention_fedavg: south/repeat0/fold0: .* \(column 'age' is 50 to 50\)"
    with pytest.raises(MilError, match=said):
        check(tmp_path, repository, over, spoil)


def test_leaving_a_site_out_of_two_is_refused_before_the_first_tile(tmp_path, repository):
    over = {"experiments": {"attention_pooled": {"protocol": "leave_one_site_out"}}}
    with pytest.raises(MilError, match="protocol leave_one_site_out needs three"):
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
        ({"time": "age", "event": "response"}, "unknown", "patient 'south-p1' has age = 'unknown'"),
    ],
)
def test_a_word_among_numbers_names_the_patient(tmp_path, repository, metrics, cell, said):
    with pytest.raises(MilError, match=said):
        check(
            tmp_path, repository, {"metrics": metrics}, lambda text: text.replace("south-p1,1,43", f"south-p1,1,{cell}")
        )


@pytest.mark.parametrize(
    ("over", "rename", "said"),
    [
        (
            {},
            ("p1,1", "p1,responder"),
            r"endpoints.response: .*patients.csv line 3: patient 'north-p1' has response = 'responder'",
        ),
        (
            {"endpoints": {"response": {"folds": 5}}},
            ("", ""),
            "site north: 4 patients with response = 0 are too few for 5 folds, which need 5; set folds to 4",
        ),
        (
            {"endpoints": {"response": {"positive": ["yes", "1"]}}},
            (",0,", ",,"),
            "site north: all 4 patients have response = yes or 1; a training site needs both classes",
        ),
        (
            {"endpoints": {"response": {"kind": "regression", "column": "age", "folds": 5}}},
            ("", ""),
            "site north: 8 patients are too few for 5 folds, which need 10; set folds to 4",
        ),
    ],
    ids=["word", "folds", "class", "regression"],
)
def test_labels_that_no_fold_can_use_are_said_before_the_first_tile(tmp_path, repository, over, rename, said):
    with pytest.raises(MilError, match=said):
        check(tmp_path, repository, over, lambda text: text.replace(*rename))


def test_weights_that_are_not_there_are_said_before_the_first_tile(tmp_path, repository):
    slides = {"features": None, "roles": {"north": "train", "south": "train", "east": "external"}}
    with pytest.raises(
        MilError, match=r"encoders.uni: encoder uni needs weights: ask for access at https://.*mil encoders fetch uni"
    ):
        check_with_slides(tmp_path, repository, slides, {})
    with pytest.raises(MilError, match=r"encoders.uni: encoder uni: weights nowhere do not exist"):
        check_with_slides(tmp_path, repository, slides, {"encoders": {"uni": {"weights": "nowhere"}}})
    (tmp_path / "uni.bin").write_bytes(b"weights")
    check_with_slides(tmp_path, repository, slides, {"encoders": {"uni": {"weights": str(tmp_path / "uni.bin")}}})


def check_with_slides(tmp_path, repository, slides, over):
    settings = merge(merge(read_yaml(repository / "configs/experiments.yaml"), make_features(tmp_path)), over)
    settings["slides"] = {**settings["slides"], **slides, "features": {}}
    sheet = tmp_path / "slides.csv"
    rows = sheet.read_text().splitlines()
    for number, line in enumerate(rows[1:], 1):
        name = f"{line.split(',')[0]}.svs"
        (tmp_path / name).write_bytes(b"slide")
        rows[number] = line + name
    sheet.write_text("\n".join(rows) + "\n")
    config = parse(Config, settings, "here")
    check_readiness(config, read_cohort(config.slides, ["response"]))


def test_a_missing_label_names_the_endpoint_and_the_experiments_that_use_it(tmp_path, repository):
    over = {"endpoints": {"msi": {"column": "msi"}}}
    settings = merge(merge(read_yaml(repository / "configs/experiments.yaml"), make_features(tmp_path)), over)
    patients = tmp_path / "patients.csv"
    patients.write_text(patients.read_text().replace("response", "msi", 1))
    said = r"column 'response' is missing.*endpoint 'response', which attention_pooled.* use .*experiments: \{attention_pooled: \{endpoint: msi\}\}"
    with pytest.raises(MilError, match=said):
        checked_cohort(parse(Config, settings, "here"))


def test_a_sheet_of_features_alone_needs_no_column_path(tmp_path, repository):
    settings = make_features(tmp_path)
    sheet = tmp_path / "slides.csv"
    columns = pd.read_csv(sheet, dtype=str)
    columns.drop(columns="path").to_csv(sheet, index=False)
    config = parse(Config, merge(read_yaml(repository / "configs/experiments.yaml"), settings), "here")
    assert set(read_cohort(config.slides, ["response"]).slides["path"]) == {""}
    some = config.slides.model_copy(update={"features": dict(list(config.slides.features.items())[:1])})
    with pytest.raises(MilError, match="column 'path' is blank"):
        read_cohort(some, ["response"])
