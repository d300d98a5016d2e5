"""Bags count everyone, deal folds that share nobody, and say what is wrong with labels in one line."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mil.bags.census import flow, take_census
from mil.bags.table import _strata as strata_of
from mil.bags.table import check_classes, deal_folds, make_bags, read_bags
from mil.config import EndpointSpec
from mil.errors import MilError
from mil.rng import rng
from mil.slides.sheet import Cohort
from mil.tables import write_table

ROLES = {"A": "train", "B": "train", "C": "external"}
ENDPOINT = EndpointSpec(folds=3, inner_folds=3, repeats=2)


def make_cohort(patients_a_site=12, positive=lambda n: n % 3 == 0):
    rows = [(f"{site}{n}", site, str(int(positive(n)))) for site in ROLES for n in range(patients_a_site)]
    patients = pd.DataFrame([(p, label) for p, _, label in rows], columns=["patient_id", "response"])
    patients.index = pd.RangeIndex(2, 2 + len(patients))
    census = pd.DataFrame(
        [(f"{p}-{k}", p, site, "ok", "", "effnet", 10) for p, site, _ in rows for k in range(1 + (p.endswith("1")))],
        columns=["slide_id", "patient_id", "site", "state", "reason", "stage", "num_tiles"],
    )
    return Cohort(pd.DataFrame(), patients, "patients.csv"), census


def test_folds_cover_the_training_patients_and_share_nobody():
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    train = bags[bags["role"] == "train"]
    for repeat in range(2):
        assert set(train[f"repeat{repeat}"]) == {0, 1, 2}
        for fold in range(3):
            inner = train[f"repeat{repeat}_fold{fold}_inner"]
            held_out = train[f"repeat{repeat}"] == fold
            assert inner[held_out].isna().all()
            assert set(inner[~held_out]) == {0, 1, 2}
    assert bags.loc[bags["role"] == "external", "repeat0"].isna().all()


def test_folds_are_stratified_within_every_site():
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    train = bags[bags["role"] == "train"]
    for _, part in train.groupby(["site", "repeat0"]):
        assert len(part) == 4
        assert 1 <= part["label"].sum() <= 2


def test_folds_do_not_depend_on_the_order_of_the_rows_or_on_other_sites():
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    plain = bags[["patient_id", "slides", "site", "role", "label"]]
    shuffled = plain.sample(frac=1, random_state=1).reset_index(drop=True)
    again = deal_folds(shuffled, ENDPOINT).sort_values(["site", "patient_id"], ignore_index=True)
    pd.testing.assert_frame_equal(again, bags)
    alone = deal_folds(plain[plain["site"] == "A"].reset_index(drop=True), ENDPOINT)
    pd.testing.assert_frame_equal(alone, bags[bags["site"] == "A"].reset_index(drop=True))


def test_repeats_differ():
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    train = bags[bags["role"] == "train"]
    assert not np.array_equal(train["repeat0"], train["repeat1"])


def test_several_slides_of_a_patient_are_one_bag():
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    assert bags.set_index("patient_id").loc["A1", "slides"] == "A1-0;A1-1"
    assert bags["patient_id"].is_unique


def test_everyone_is_counted():
    cohort, census = make_cohort()
    census.loc[census["slide_id"] == "A0-0", ["state", "reason"]] = ["unreadable", "truncated"]
    census.loc[census["slide_id"] == "A1-0", ["state", "reason"]] = ["no_mpp", "no mpp"]  # A1 keeps A1-1
    cohort.patients.loc[cohort.patients["patient_id"] == "B2", "response"] = ""
    bags, table = make_bags(cohort, census, ROLES, ENDPOINT)
    assert "A0" not in set(bags["patient_id"])
    of_b2 = bags.set_index("patient_id").loc["B2"].drop(["slides", "site", "role"])
    assert of_b2.isna().all()  # neither label nor fold
    assert bags.set_index("patient_id").loc["A1", "slides"] == "A1-1"
    by = table.set_index(["site", "step", "reason"])
    assert tuple(by.loc[("A", "excluded", "unreadable"), ["patients", "slides"]]) == (1, 1)
    assert tuple(by.loc[("A", "excluded", "no_mpp"), ["patients", "slides"]]) == (0, 1)
    assert tuple(by.loc[("B", "excluded", "no_label"), ["patients", "slides"]]) == (1, 1)
    for site in ROLES:
        rows = table[table["site"] == site].set_index("step")
        excluded = table[(table["site"] == site) & (table["step"] == "excluded")]
        for column in ("patients", "slides"):
            assert rows.loc["in_sheet", column] == rows.loc["used", column] + excluded[column].sum()


def test_a_patient_without_a_row_is_told_from_one_without_a_label():
    cohort, census = make_cohort()
    cohort.patients.loc[cohort.patients["patient_id"] == "B2", "response"] = ""
    cohort = replace(cohort, patients=cohort.patients[cohort.patients["patient_id"] != "B3"])
    _, table = make_bags(cohort, census, ROLES, ENDPOINT)
    by = table.set_index(["site", "step", "reason"])["patients"]
    assert (by["B", "excluded", "no_label"], by["B", "excluded", "no_patient"]) == (1, 1)


def test_a_hospital_that_is_external_has_bags_without_folds():
    cohort, census = make_cohort()
    own = census[census["site"] == "A"]
    bags, _ = make_bags(cohort, own, {"A": "external"}, ENDPOINT)
    assert set(bags["role"]) == {"external"}
    assert bags[[name for name in bags if name.startswith("repeat")]].isna().all(axis=None)
    with pytest.raises(MilError, match="no patient of a training site"):
        make_bags(cohort, own.iloc[:0], {"A": "external"}, ENDPOINT)


def test_where_no_training_patient_is_left_the_reasons_are_in_the_message():
    """The flow table is not written then."""
    cohort, census = make_cohort()
    none = census.assign(state="unreadable_features")
    with pytest.raises(
        MilError, match=r"training site is left \(A: \d+ slides unreadable_features, B: \d+ slides unread"
    ):
        make_bags(cohort, none, ROLES, ENDPOINT)


@pytest.mark.parametrize(
    "endpoint",
    [ENDPOINT, ENDPOINT.model_copy(update={"kind": "multiclass", "classes": ("0", "1")})],
    ids=lambda one: one.kind,
)
def test_whole_numbers_with_a_decimal_point_are_the_same_labels(endpoint):
    """A program that holds a column with a blank cell as floating-point numbers saves 1 as 1.0."""
    cohort, census = make_cohort()
    cohort.patients.loc[5, "response"] = ""
    expected, _ = make_bags(cohort, census, ROLES, endpoint)
    filled = cohort.patients["response"] != ""
    cohort.patients.loc[filled, "response"] += ".0"
    pd.testing.assert_frame_equal(make_bags(cohort, census, ROLES, endpoint)[0], expected)


def test_a_label_outside_the_classes_names_the_row():
    cohort, census = make_cohort()
    cohort.patients.loc[5, "response"] = "maybe"
    with pytest.raises(MilError, match=r"patients.csv line 5: patient 'A3' has response = 'maybe'"):
        make_bags(cohort, census, ROLES, ENDPOINT)


@pytest.mark.parametrize(
    ("kind", "value"), [("survival", "inf"), ("survival", "0"), ("regression", "-inf"), ("regression", "1e60")]
)
def test_a_number_that_no_model_can_predict_names_the_row(kind, value):
    cohort, census = make_cohort()
    cohort.patients[["response", "event"]] = "1"
    cohort.patients.loc[5, "response"] = value
    endpoint = EndpointSpec(kind=kind, column="response", event="event" if kind == "survival" else None)
    with pytest.raises(MilError, match=f"patients.csv line 5: patient 'A3' has response = '{value}'"):
        make_bags(cohort, census, ROLES, endpoint)


def test_one_class_only_is_said():
    cohort, census = make_cohort(positive=lambda n: False)
    with pytest.raises(MilError, match="site A: all 12 patients have response = 0"):
        make_bags(cohort, census, ROLES, ENDPOINT)


def test_too_few_patients_for_the_folds_are_said():
    cohort, census = make_cohort(patients_a_site=6)
    with pytest.raises(
        MilError, match="site A: 2 patients with response = 1 are too few for 3 folds, which need 3; add pat"
    ):
        make_bags(cohort, census, ROLES, ENDPOINT)


@pytest.mark.parametrize(
    ("number", "folds", "advice"),
    [(3, 2, "which need 4; set folds to 3"), (3, 3, None), (4, 2, None), (4, 5, "set folds to 4")],
)
def test_the_advice_on_folds_is_one_that_works(number, folds, advice):
    """Three patients of a class do for three folds and not for two: of two folds one holds two of them."""
    rows = pd.DataFrame({"site": "A", "role": "train", "label": [1] * number + [0] * 9})
    endpoint = EndpointSpec(folds=folds, positive=("responder",))
    if advice is None:
        check_classes(rows, {"A": "train"}, endpoint)
        return
    with pytest.raises(MilError, match=f"{number} patients with response = responder are too few .*{advice}"):
        check_classes(rows, {"A": "train"}, endpoint)


def test_census_keeps_the_first_state_that_is_not_ok():
    slides = pd.DataFrame(
        [("a", "ok", ""), ("b", "no_mpp", "no mpp"), ("c", "ok", "")], columns=["slide_id", "state", "reason"]
    ).assign(patient_id="p", site="A", mpp=0.5, mpp_source="header", format="tiff")
    tiles = pd.DataFrame(
        [("a", "ok", "", 7), ("c", "no_tissue", "blank", 0)], columns=["slide_id", "state", "reason", "num_tiles"]
    )
    features = pd.DataFrame([("a", "ok", "", 7)], columns=["slide_id", "state", "reason", "num_tiles"])
    census = take_census(slides, {"tile": tiles, "effnet": features}).set_index("slide_id")
    assert dict(census["state"]) == {"a": "ok", "b": "no_mpp", "c": "no_tissue"}
    assert dict(census["stage"]) == {"a": "effnet", "b": "check", "c": "tile"}
    assert "path" not in census.columns


def test_census_refuses_a_slide_that_a_stage_forgot():
    slides = pd.DataFrame([("a", "ok", "")], columns=["slide_id", "state", "reason"]).assign(
        patient_id="p", site="A", mpp=0.5, mpp_source="", format=""
    )
    with pytest.raises(MilError, match="slide 'a' is ok so far but has no row"):
        take_census(slides, {"tile": pd.DataFrame(columns=["slide_id", "state", "reason", "num_tiles"])})


def test_flow_counts_a_patient_once():
    census = pd.DataFrame(
        [("s1", "p", "A", "unreadable"), ("s2", "p", "A", "no_mpp")],
        columns=["slide_id", "patient_id", "site", "state"],
    )
    table = flow(census, {"A": "train"}, [], {})
    assert table[table["step"] == "excluded"]["patients"].sum() == 1
    pd.testing.assert_frame_equal(flow(census[::-1], {"A": "train"}, [], {}), table)  # the sheet's order is no matter


def test_covariates_stand_in_the_bags_as_numbers():
    cohort, census = make_cohort()
    patients = cohort.patients.assign(
        t=["T1", "T2", "", "T3"] * 9, menopause=["pre", "post"] * 18, age=[str(40 + n) for n in range(36)]
    )
    cohort = Cohort(cohort.slides, patients, "patients.csv")
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT, ["t", "menopause", "age"])
    row = bags.set_index("patient_id").loc["A1"]
    assert (row["t"], row["menopause"], row["age"]) == (2, 0, 41)  # of two classes the later one is 1
    assert np.isnan(bags.set_index("patient_id").loc["A2", "t"])
    with pytest.raises(MilError, match="covariate 'kind' has 3 classes"):
        make_bags(
            Cohort(cohort.slides, patients.assign(kind=["x", "y", "z"] * 12), "p.csv"),
            census,
            ROLES,
            ENDPOINT,
            ["kind"],
        )
    with pytest.raises(MilError, match="covariates: column 'agee' is not in the patient table; did you mean 'age'"):
        make_bags(cohort, census, ROLES, ENDPOINT, ["agee"])
    with pytest.raises(MilError, match="a column of that name"):
        make_bags(cohort, census, ROLES, ENDPOINT, ["site"])


def test_bags_of_every_kind_of_endpoint():
    cohort, census = make_cohort()
    patients = cohort.patients.assign(
        months=[str(3 + n) for n in range(36)], death=["1", "0", "1"] * 12, grade=["low", "middle", "high"] * 12
    )
    patients.loc[patients.index[4], "months"] = ""
    cohort = Cohort(cohort.slides, patients, "patients.csv")
    shared = {"folds": 3, "inner_folds": 2}
    survival = EndpointSpec.model_validate({"kind": "survival", "column": "months", "event": "death", **shared})
    bags, _ = make_bags(cohort, census, ROLES, survival)
    assert bags.set_index("patient_id").loc["A4", ["time", "label", "repeat0"]].isna().all()
    assert tuple(bags.set_index("patient_id").loc["A1", ["time", "label"]]) == (4, 0)
    several = EndpointSpec.model_validate(
        {"kind": "multiclass", "column": "grade", "classes": ["low", "middle", "high"], **shared}
    )
    bags, _ = make_bags(cohort, census, ROLES, several)
    for _, part in bags[bags["role"] == "train"].groupby(["site", "repeat0"]):
        assert part["label"].nunique() == 3
    number = EndpointSpec.model_validate({"kind": "regression", "column": "months", **shared})
    bags, _ = make_bags(cohort, census, ROLES, number)
    assert bags["label"].dtype == float
    assert bags[bags["role"] == "train"].groupby(["site", "repeat0"])["label"].mean().groupby("site").std().max() < 3
    wrong = Cohort(cohort.slides, patients.assign(months=["soon", *patients["months"][1:]]), "patients.csv")
    for endpoint in (survival, number):
        with pytest.raises(MilError, match=r"patients.csv line 2: patient 'A0' has months = 'soon'"):
            make_bags(wrong, census, ROLES, endpoint)


def test_patients_are_dealt_like_cards_by_a_stream_of_their_own():
    """By hand: within a site label 0 first, each in the order of its own stream, from a first fold of its own."""
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    for site, rows in bags[bags["role"] == "train"].groupby("site"):
        names = rows["patient_id"].to_numpy()
        order = []
        for label in (0, 1):
            own = np.sort(names[rows["label"] == label])
            order += rng(ENDPOINT.seed, "outer", 1, site, label).permutation(own).tolist()
        first = int(rng(ENDPOINT.seed, "outer", 1, site, "start").integers(3))
        expected = {name: (first + place) % 3 for place, name in enumerate(order)}
        assert rows.set_index("patient_id")["repeat1"].to_dict() == expected


def test_numbers_are_dealt_by_thirds_and_classes_as_they_are():
    numbers = pd.Series(np.random.default_rng(0).permutation(21) / 2)
    assert strata_of(numbers).tolist() == (numbers * 2 // 7).tolist()
    assert strata_of(numbers).value_counts().tolist() == [7, 7, 7]
    few = pd.Series(np.arange(24) % 12)
    assert strata_of(few).equals(few)
    assert strata_of(pd.Series(np.arange(13))).nunique() == 3
    names = pd.Series([f"c{n}" for n in range(20)])
    assert strata_of(names).equals(names)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("patient_id", "", "line 3: patient '': patient_id is blank"),
        ("patient_id", "A0", "line 3: patient 'A0': the patient has a row already"),
        ("role", "trains", "line 3: patient 'A1': role is neither train nor external"),
        ("repeat0", "", "line 3: patient 'A1': repeat0 is no number of a fold"),
        ("repeat1", "0.5", "line 3: patient 'A1': repeat1 is no number of a fold"),
        ("label", "", "line 3: patient 'A1': label is blank, but repeat0 is filled"),
        ("site", None, "column 'site' is missing"),
    ],
)
def test_a_bag_table_that_was_changed_by_hand_is_refused_with_its_line(tmp_path, column, value, said):
    cohort, census = make_cohort()
    bags, _ = make_bags(cohort, census, ROLES, ENDPOINT)
    bags = bags.astype(str).replace("<NA>", "")
    if value is None:
        bags = bags.drop(columns=column)
    else:
        bags.loc[1, column] = value
    write_table(bags, tmp_path / "bags.csv")
    with pytest.raises(MilError) as caught:
        read_bags(tmp_path / "bags.csv")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "ok", "", 7), ("a", "ok", "", 7)], "slide 'a' stands twice"),
        ([("a", "", "", 7)], "slide 'a' has no state"),
        ([("a", "ok", "", 0.5)], "slide 'a' has a number of tiles"),
    ],
)
def test_census_refuses_a_manifest_that_was_changed(rows, said):
    slides = pd.DataFrame([("a", "ok", "")], columns=["slide_id", "state", "reason"]).assign(
        patient_id="p", site="A", mpp=0.5, mpp_source="", format=""
    )
    manifest = pd.DataFrame(rows, columns=["slide_id", "state", "reason", "num_tiles"])
    with pytest.raises(MilError, match=said):
        take_census(slides, {"tile": manifest})
