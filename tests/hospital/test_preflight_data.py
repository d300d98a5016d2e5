"""What a hospital's tables, features and disk show before it joins."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hospitals import Hospitals, make_hospitals

from mil import hdf5
from mil.errors import MilError
from mil.hospital.identity import code_sha256
from mil.hospital.parties import SiteSpec, read_own
from mil.hospital.preflight import check_site, write_hashes


@pytest.fixture
def copied(tmp_path: Path) -> Hospitals:
    """Three hospitals without certificates, to be spoilt."""
    return make_hospitals(tmp_path / "copy")


def states(hospitals: Hospitals, name: str = "A", **options) -> dict[str, tuple[str, str]]:
    return {one.check: (one.state, one.sentence) for one in check_site(hospitals.site(name), **options)}


def test_a_site_that_is_no_member_is_told_so(copied: Hospitals) -> None:
    path = copied.folder / "A" / "site.yaml"
    path.write_text(path.read_text().replace("site: A", "site: AA"))
    with_fault = check_site(read_own(SiteSpec, path))
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
        ("A001,A-1-0,A,train,1", "A001,A-1-0,A,train,", "bags", "A001: label"),
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


def test_patients_and_slides_in_two_sites_are_found(copied: Hospitals, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("0123456789abcdef0123456789abcdef")
    for name in "ABC":
        path = copied.folder / name / "site.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "salt": str(salt)}))
    table = Path(copied.site("B").results) / "bags" / "response.csv"
    table.write_text(table.read_text().replace("B007,", "a 013,"))  # the same patient, written otherwise
    same = "sha256:" + "7" * 64
    for name, slide in (("A", "A-2-0"), ("C", "C-4-0")):
        path = Path(copied.site(name).results) / "sites" / name / "features" / "toy" / f"{slide}.h5"
        path.unlink()
        with hdf5.writing(path) as file:
            file.append("features", np.zeros((3, 12), np.float16))
            about = {"encoder": "toy", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224}
            file.annotate({**about, "fingerprint": same})
    files = []
    for name in "BC":
        files.append(tmp_path / f"{name}.hashes")
        write_hashes(copied.site(name), files[-1])
        assert name + "0" not in files[-1].read_text()  # no id stands in it
    found = [one for one in check_site(copied.site("A"), against=files) if one.check == "duplicates"]
    assert [one.sentence.split(" stands")[0] for one in found] == ["patient A013", "slide A-2-0"]
    own = copied.folder / "A" / "site.yaml"
    own.write_text(own.read_text() + f"against: [{files[0]}, ../{files[1].name}]\n")  # looked at every time it starts
    found = [one for one in check_site(copied.site("A")) if one.check == "duplicates"]
    assert [one.sentence.split(" stands")[0] for one in found[:1]] == ["patient A013"]
    assert "C.hashes: cannot be read" in found[-1].sentence
    clean = [one for one in check_site(copied.site("C"), against=files[:1]) if one.check == "duplicates"]
    assert [one.state for one in clean] == ["ok"]


def test_without_a_salt_no_hash_is_made(copied: Hospitals, tmp_path: Path) -> None:
    with pytest.raises(MilError, match="salt is not set"):
        write_hashes(copied.site("A"), tmp_path / "out")


def test_a_full_disk_is_seen(copied: Hospitals) -> None:
    path = copied.folder / "A" / "site.yaml"
    path.write_text(path.read_text() + "free_gb: 1.0e+9\n")
    assert "make room" in states(copied)["disk"][1]
