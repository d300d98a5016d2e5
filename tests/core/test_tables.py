"""Tables come back as they were, whole numbers stay whole, and nothing in them is a formula."""

import numpy as np
import pandas as pd
import pytest

from mil.tables import csv_text, read_table, table_of, write_table

FORMULAS = ["=HYPERLINK(1)", "+cmd|x", "@SUM(A1)", "-2+3", "\t=1", "'=1", "''-x", "-", "=", "\r1"]
PLAIN = ["'", "it's", "a=b", "'quoted'", "-3", "+1.5e-3", "-.5", "-inf", "NA", "007", "ok"]


def test_cells_that_a_spreadsheet_executes_are_text_and_come_back(tmp_path):
    table = pd.DataFrame({"slide_id": FORMULAS + PLAIN, "=1+1": [f"{cell}!" for cell in FORMULAS + PLAIN]})
    write_table(table, tmp_path / "a.csv")
    raw = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert raw.columns[1] == "'=1+1"
    for column in raw:
        risky = raw[column].str.match(r"[=+\-@\t\r]") & ~raw[column].str.fullmatch(r"[+-]?[0-9.]+(e-3)?|-inf")
        assert not risky.any()
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.csv"), table)


def test_numbers_are_written_as_numbers(tmp_path):
    table = pd.DataFrame({"value": [-1.5, 2.0, np.nan], "count": [-3, 4, 5]})
    assert csv_text(table) == "value,count\n-1.5,-3\n2.0,4\n,5\n"
    write_table(table, tmp_path / "a.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.csv"), table)


def test_whole_numbers_stay_whole_beside_blank_rows():
    rows = [{"a": 1100, "b": 0.5, "c": "x", "d": 3}, {"a": None, "c": "y", "d": np.int64(4)}]
    assert csv_text(table_of(rows, ("a", "b", "c", "d"))) == "a,b,c,d\n1100,0.5,x,3\n,,y,4\n"
    assert csv_text(table_of([], ("a", "b"))) == "a,b\n"


@pytest.mark.parametrize("cells", [["1_0", "2"], ["1", "2_0"]])
def test_an_underscore_is_no_digit(tmp_path, cells):
    (tmp_path / "a.csv").write_text("x\n" + "\n".join(cells) + "\n")
    assert list(read_table(tmp_path / "a.csv")["x"]) == cells


def test_a_column_of_numbers_whose_cells_are_all_blank_holds_no_text(tmp_path):
    write_table(pd.DataFrame({"low": [None, None], "remark": [None, None]}), tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv")
    assert table["low"].isna().all()
    assert table["low"].dtype == float
    assert table["remark"].tolist() == ["", ""]
