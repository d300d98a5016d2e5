"""A sheet is refused with its row, the value and the way out, or every row of it can be trusted."""

import pandas as pd
import pytest

from mil.config import SlidesSpec
from mil.errors import MilError
from mil.slides.sheet import read_cohort

ROLES = {"A": "train", "B": "external"}
GOOD = "slide_id,patient_id,site,path,mpp\ns1,p1,A,s1.tif,\ns2,p1,A,s2.tif,0.25\ns3,p2,B,s3.tif,\n"
PATIENTS = "patient_id,response\np1,1\np2,0\n"


def write(folder, sheet=GOOD, patients=PATIENTS, name="slides.csv"):
    (folder / name).write_text(sheet)
    for number in range(1, 5):
        (folder / f"s{number}.tif").write_bytes(b"")
    if patients is not None:
        (folder / "patients.csv").write_text(patients)
    return SlidesSpec(
        sheet=str(folder / name), patients=str(folder / "patients.csv") if patients else None, roles=ROLES
    )


def test_good_sheet(tmp_path):
    cohort = read_cohort(write(tmp_path), ["response"])
    assert cohort.sites == ["A", "B"]
    assert list(cohort.at("A")["slide_id"]) == ["s1", "s2"]
    assert cohort.slides["path"].iloc[0] == str(tmp_path / "s1.tif")
    assert cohort.slides["listed"].all()


def test_interleaved_patients_are_all_kept(tmp_path):
    sheet = "slide_id,patient_id,site,path\na1,p1,A,s1.tif\nb1,p3,A,s2.tif\na2,p1,A,s3.tif\nb2,p3,A,s4.tif\n"
    cohort = read_cohort(write(tmp_path, sheet, "patient_id,response\np1,1\np3,0\n"), ["response"])
    assert list(cohort.slides["slide_id"]) == ["a1", "b1", "a2", "b2"]


def test_patient_columns_may_stand_in_the_sheet(tmp_path):
    sheet = "slide_id\tpatient_id\tsite\tpath\ttumour\ns1\t007\tA\ts1.tif\t1\ns2\tNA\tA\ts2.tif\t0\n"
    cohort = read_cohort(write(tmp_path, sheet, None, "slides.tsv"), ["tumour"])
    assert list(cohort.patients["patient_id"]) == ["007", "NA"]
    assert list(cohort.patients["tumour"]) == ["1", "0"]


def test_a_patient_without_a_row_is_not_listed(tmp_path):
    cohort = read_cohort(write(tmp_path, patients="patient_id,response\np2,\n"), ["response"])
    assert list(cohort.slides["listed"]) == [False, False, True]


def test_ids_as_hospitals_write_them_are_taken(tmp_path):
    sheet = GOOD.replace("s3,p2", "S 12 (a) 50% ä,M.-N. [2]")
    cohort = read_cohort(write(tmp_path, sheet, PATIENTS.replace("p2", "M.-N. [2]")), ["response"])
    assert list(cohort.slides["slide_id"]) == ["s1", "s2", "S 12 (a) 50% ä"]
    assert cohort.slides["listed"].all()


@pytest.mark.parametrize(
    ("sheet", "said"),
    [
        (GOOD.replace("s3,p2", "s1,p2"), "line 4: slide_id 's1' stands in line 2 already"),
        (GOOD.replace("s3,p2", "S1,p2"), "line 4: slide_id 'S1' stands in line 2 already"),
        (GOOD.replace("s3.tif", "s1.tif"), "line 4: path 's1.tif' stands in line 2 already"),
        (GOOD.replace("s3.tif", "./x/../s1.tif"), "stands in line 2 already"),
        (GOOD.replace("s3,p2,B", "s3,p1,B"), "line 4: patient 'p1' is at site 'B', but in line 2 at 'A'"),
        (GOOD.replace(",mpp", ",mmp"), "unknown column 'mmp'; did you mean 'mpp'?"),
        (GOOD.replace("site", "hospital"), "column 'site' is missing"),
        (GOOD.replace("p2,B", "p2,C"), "line 4: site 'C' has no role"),
        (GOOD.replace("s3.tif", "s9.tif"), "s9.tif does not exist"),
        (GOOD.replace("0.25", "a quarter"), "line 3: mpp 'a quarter' is not a positive number"),
        (
            GOOD.replace("0.25", '"0,25"'),
            "line 3: mpp '0,25' is not a positive number; give microns a pixel with a decimal point",
        ),
        (GOOD.replace("0.25", "-1"), "line 3: mpp '-1' is not a positive number"),
        (GOOD.replace("0.25", "1_0"), "line 3: mpp '1_0' is not a positive number"),
        (GOOD.replace("0.25", "inf"), "line 3: mpp 'inf' is not a positive number"),
        (GOOD.replace("s3,p2", "../s3,p2"), "cannot be a file name"),
        (GOOD.replace("s3,p2", "s3;s4,p2"), "cannot be a file name"),
        (GOOD.replace("s3,p2", "s3,P1"), "line 4: patient 'P1' is spelt 'p1' in line 2"),
        (
            GOOD.replace("p1", "p-1").replace("s3,p2", "s3,p\u20131"),
            "line 4: patient 'p\u20131' is spelt 'p-1' in line 2",
        ),
        (GOOD.replace("s1,", "s-1,").replace("s3,p2", "s\u22121,p2"), "line 4: slide_id 's\u22121' stands in line 2"),
        (GOOD.replace("s3,p2", ",p2"), "line 4: column 'slide_id' is blank"),
        ("slide_id,patient_id,site,path\n", "has no rows"),
        ("", "is empty"),
        (GOOD + "s4,p3,A\n", "line 5: 3 cells, but the header has 5"),
        ("slide_id,slide_id\n", "stands twice"),
        ('a,"b\n', "cannot be read as a CSV table"),
        (GOOD.replace(",", "|"), "parted by bars, not commas"),
        (
            GOOD.replace("path", "Path").replace("mpp", "MPP"),
            "column 'path' is missing; did you mean 'Path'?",
        ),
        (
            GOOD.replace("site", "SITE").replace("path", "Path"),
            "did you mean 'SITE'?; column 'path' is missing; did you mean 'Path'?",
        ),
        (
            GOOD.replace("\n", ",\n").replace("mpp,", "MPP,Sex"),
            "unknown column 'MPP'; did you mean 'mpp'?; unknown column 'Sex'",
        ),
        ("PK\x03\x04", "is a spreadsheet's workbook; save the sheet as CSV UTF-8"),
        (GOOD.replace(",", "\t"), "parted by tabs, not commas"),
        (GOOD.replace("mpp", "").replace("p1,A,s2.tif,0.25", "p1,A,s2.tif,x"), "column 5 has no name"),
        (GOOD.replace("s3.tif", "s" * 5000), "does not exist"),
    ],
)
def test_bad_sheet_is_one_line(tmp_path, sheet, said):
    with pytest.raises(MilError) as caught:
        read_cohort(write(tmp_path, sheet), ["response"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        ("patient_id,respons\np1,1\n", "column 'response' is missing; did you mean 'respons'?"),
        ("patient_id,response\np1,1\np1,0\n", "line 3: patient 'p1' has a row already"),
        ("patient,response\np1,1\n", "column 'patient_id' is missing"),
        ("patient_id,response\np1,1\n,0\n", "line 3: column 'patient_id' is blank"),
        ("patient_id,response\np1,1\np2,0\nP2,0\n", "line 4: patient 'P2' is spelt 'p2' in line 3"),
        (
            "patient_id,response\np1,1\nP 2,0\n",
            "line 4: patient 'p2' has no row in .*, but 'P 2' has; write both alike",
        ),
        ("patient_id|response\np1|1\n", "parted by bars, not commas"),
        (
            "patient_id,response\np1,1\n0P2.0,0\n",
            "line 4: patient 'p2' has no row in .*, but '0P2.0' has; write both alike",
        ),
        (
            "patient_id,response\np1,1\np\u00ad2,0\n",
            r"line 4: patient 'p2' has no row in .*, but 'p\\xad2' has; write both alike",
        ),
        (
            "patient_id,response\nq1,1\nq7,0\n",
            "none of the 2 patients of slide sheet .* has a row in .*: ids there are like 'q1', in the sheet like 'p1'",
        ),
    ],
)
def test_bad_patient_table_is_one_line(tmp_path, patients, said):
    with pytest.raises(MilError, match=said.replace("?", r"\?")):
        read_cohort(write(tmp_path, patients=patients), ["response"])


@pytest.mark.parametrize(
    ("sheet", "patients", "said"),
    [
        ({"p1": "a_1"}, {"p1": "A-1"}, "patient 'a_1' has no row in .*, but 'A-1' has"),
        ({"p1": "100000"}, {"p1": "1E+05"}, "patient '100000' has no row in .*, but '1E.05' has"),
        ({"s2,p1": "s2,07", "p1": "7"}, {"p1": "7"}, "line 3: patient '07' stands as '7' in line 2; write both alike"),
        ({"s2,p1": "s2,7.0", "p1": "7"}, None, "line 3: patient '7.0' stands as '7' in line 2; write both alike"),
    ],
)
def test_ids_that_a_spreadsheet_changed_are_not_other_patients(tmp_path, sheet, patients, said):
    texts = [GOOD, PATIENTS]
    for number, changes in enumerate([sheet, patients or {}]):
        for old, new in changes.items():
            texts[number] = texts[number].replace(old, new)
    with pytest.raises(MilError, match=said):
        read_cohort(write(tmp_path, texts[0], None if patients is None else texts[1]))


def test_ids_that_differ_by_zeros_are_two_patients_where_both_have_a_row(tmp_path):
    sheet = GOOD.replace("s2,p1", "s2,07").replace("p1", "7")
    cohort = read_cohort(write(tmp_path, sheet, PATIENTS.replace("p1", "7") + "07,0\n"))
    assert cohort.slides["patient_id"].nunique() == 3


def test_semicolons_part_cells_where_the_header_has_no_comma(tmp_path):
    given = read_cohort(write(tmp_path, GOOD), ["response"])
    again = read_cohort(write(tmp_path, GOOD.replace(",", ";")), ["response"])
    pd.testing.assert_frame_equal(again.slides, given.slides)


def test_patient_columns_that_disagree_between_slides_are_refused(tmp_path):
    sheet = "slide_id,patient_id,site,path,response\ns1,p1,A,s1.tif,1\ns2,p1,A,s2.tif,0\n"
    with pytest.raises(MilError, match="line 3: patient 'p1' has other values"):
        read_cohort(write(tmp_path, sheet, None), ["response"])


def test_missing_sheet_is_said(tmp_path):
    with pytest.raises(MilError, match="does not exist"):
        read_cohort(SlidesSpec(sheet=str(tmp_path / "none.csv"), roles=ROLES))


def test_unknown_site_names_the_nearest(tmp_path):
    cohort = read_cohort(write(tmp_path), ["response"])
    with pytest.raises(MilError, match="site 'a' has no slide"):
        cohort.at("a")


def test_a_sheet_as_spreadsheets_save_it(tmp_path):
    """Byte-order mark, carriage returns, blank columns at the right; names of two lines, signs of no width behind cells."""
    spec = write(tmp_path, patients='patient_id,"response\n(pCR)"\np1\u200b,1\np2,0\n')
    with_ends = "".join(f"{line},,\r\n" for line in GOOD.splitlines())
    (tmp_path / "slides.csv").write_bytes(b"\xef\xbb\xbf" + with_ends.encode())
    cohort = read_cohort(spec, ["response (pCR)"])
    assert list(cohort.slides["mpp"]) == ["", "0.25", ""]
    assert cohort.slides["listed"].all()


def test_text_of_another_encoding_says_what_to_save_it_as(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "slides.csv").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(MilError, match=r"is not UTF-8 text .*; save it as CSV UTF-8"):
        read_cohort(spec)
