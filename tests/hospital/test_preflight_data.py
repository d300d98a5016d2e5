"""What a hospital's tables, features and disk show before it joins."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hospitals import PROTOCOL, Hospitals, make_hospitals

from mil import hdf5
from mil.errors import MilError
from mil.hospital.identity import code_sha256
from mil.hospital.local_data import site_bags
from mil.hospital.parties import SiteSpec, protocol_of, read_party
from mil.hospital.preflight import check_site
from mil.hospital.site import Site


@pytest.fixture
def copied(tmp_path: Path) -> Hospitals:
    """Three hospitals without certificates, to be spoilt."""
    return make_hospitals(tmp_path / "copy")


def states(hospitals: Hospitals, name: str = "A", **options) -> dict[str, tuple[str, str]]:
    return {one.check: (one.state, one.sentence) for one in check_site(hospitals.site(name), **options)}


def test_a_site_that_is_no_member_is_told_so(copied: Hospitals) -> None:
    path = copied.folder / "A" / "site.yaml"
    path.write_text(path.read_text().replace("site: A", "site: AA"))
    with_fault = check_site(read_party(SiteSpec, path))
    assert "site 'AA' is not a member" in with_fault[0].sentence


def test_other_code_than_the_protocol_s_is_named(copied: Hospitals) -> None:
    path = copied.folder / "A" / "federation.yaml"
    path.write_text(path.read_text() + f"code_sha256: '{'1' * 64}'\n")
    assert states(copied)["code"][0] == "fault"
    path.write_text(path.read_text().replace("1" * 64, code_sha256()))
    assert "code" not in states(copied)


def _bags(hospitals: Hospitals) -> Path:
    return Path(hospitals.site("A").results) / "bags" / "response.csv"


@pytest.mark.parametrize(
    ("before", "after", "check", "said"),
    [
        ("A001,A-1-0,A,", "A002,A-1-0,A,", "bags", "patient 'A002': the patient has a row already"),
        ("A001,A-1-0,A,train,1", "A001,A-1-0,A,train,yes", "bags", "A001: label 'yes'"),
        ("A001,A-1-0,A,train,1", "A001,A-1-0,A,train,", "bags", "A001': label is blank"),
        ("A001,A-1-0,", "A001,A-1-9,", "features", "A-1-9.h5: does not exist"),
    ],
)
def test_a_fault_of_the_table_names_the_patient_or_file(
    copied: Hospitals, before: str, after: str, check: str, said: str
) -> None:
    path = _bags(copied)
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    state, sentence = states(copied)[check]
    assert state == "fault"
    assert said in sentence


def test_patients_without_a_label_stay_out_of_the_federation(copied: Hospitals) -> None:
    """Their features are not even looked for; where nobody has a label, the site cannot take part."""
    before, path = states(copied), _bags(copied)
    spec = copied.site("A")
    known = site_bags(path, "A", protocol_of(spec))
    head, *lines = path.read_text().splitlines()
    blank = [f"B{number},B-{number},A,train" + "," * (head.count(",") - 3) for number in range(7)]
    path.write_text("\n".join([head, *blank, *lines]) + "\n")
    assert states(copied) == before
    pd.testing.assert_frame_equal(site_bags(path, "A", protocol_of(spec)), known)
    path.write_text("\n".join([head, *blank]) + "\n")
    assert "no patient has a label" in states(copied)["bags"][1]


def test_too_few_patients_and_one_class_only_are_seen_before_joining(copied: Hospitals) -> None:
    path = _bags(copied)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:40]) + "\n")
    assert "fewer than 20" in states(copied)["bags"][1]
    path.write_text("\n".join(line.replace(",train,1,", ",train,0,") for line in lines) + "\n")
    assert states(copied)["classes"] == ("warning", states(copied)["classes"][1])


def test_features_of_another_encoder_are_seen(copied: Hospitals) -> None:
    path = copied.folder / "A" / "federation.yaml"
    whole = path.read_text()
    path.write_text(whole + "features: {encoder: other}\n")
    assert "encoder is 'toy', not 'other'" in states(copied)["features"][1]
    path.write_text(whole)
    slide = Path(copied.site("A").results) / "sites" / "A" / "features" / "toy" / "A-3-0.h5"
    slide.unlink()
    with hdf5.writing(slide) as file:
        file.append("features", np.zeros((3, 12), np.float16))
        file.annotate({"encoder": "toy", "weights_sha256": "1" * 64, "tile_mpp": 0.5, "size_px": 224})
    state, said = states(copied)["features"]
    assert state == "fault"
    assert "weights_sha256" in said


def test_a_full_disk_is_seen(copied: Hospitals) -> None:
    path = copied.folder / "A" / "site.yaml"
    path.write_text(path.read_text() + "free_gb: 1.0e+9\n")
    assert "make room" in states(copied)["disk"][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": "sixty"}, "patient C003: covariate age is 'sixty', not a number"),
        ({"label": "2"}, "patient C003: label 2"),
        ({}, "column 'age' is missing"),
    ],
)
def test_an_external_site_hears_of_its_faults_before_a_run_and_not_at_its_end(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    """The run had all its rounds and could not end, and the ledger, which others read, named the patient."""
    hospitals = make_hospitals(tmp_path, experiment={**PROTOCOL["experiment"], "covariates": ["age"]})
    path = Path(hospitals.site("C").results) / "bags" / "response.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = table.assign(age="60") if change else table
    for name, value in change.items():
        table.loc[3, name] = value
    table.to_csv(path, index=False)
    assert states(hospitals, "C")["bags"][0] == "fault"
    assert said in states(hospitals, "C")["bags"][1]
    with pytest.raises(MilError, match=said):
        Site.open(hospitals.site("C"))


def test_covariates_that_differ_in_few_patients_are_seen_before_joining(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, experiment={**PROTOCOL["experiment"], "covariates": ["age", "years"]})
    path = _bags(hospitals)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["age"] = table["years"] = [str(40 + number % 30) for number in range(len(table))]
    table.loc[[1, 5], "years"] = "99"
    table.to_csv(path, index=False)
    state, said = states(hospitals)["bags"]
    assert state == "fault"
    assert "covariates age and years differ in 2 patients of this site" in said
