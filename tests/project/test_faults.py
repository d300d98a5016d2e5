"""The faults of `make faults`: their heart in `make test`, all of them in `make test-all`."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import faults

HEART = {"cuts", "wrong_files", "answers", "settings"}


CASES = [
    pytest.param(case, id=case[3].__name__, marks=[] if case[3].__name__ in HEART else pytest.mark.extended)
    for case in faults.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_a_fault_made_on_purpose_ends_as_expected(case, tmp_path):
    _, _, allowed, trials = case
    assert [outcome for outcome in trials(tmp_path) if outcome not in allowed] == []


def test_the_page_has_every_fault(repository):
    page = (repository / "docs/reliability.md").read_text()
    assert [fault for fault, expected, *_ in faults.CASES if f"| {fault} | {expected} |" not in page] == []


def test_every_test_on_the_page_of_cases_exists_and_every_case_has_one_or_is_open(repository):
    page = (repository / "docs/cases.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    missing = [one for one in named if f"\ndef {one[1]}(" not in (repository / "tests" / one[0]).read_text()]
    assert missing == []
    assert set(re.findall(r"\(`(\w+)`\) \|$", page, re.MULTILINE)) <= {case[3].__name__ for case in faults.CASES}
    rows = re.findall(r"^\| (?!case).*", page.partition("## Reading speed")[0], re.MULTILINE)
    assert [row for row in rows if "::" not in row and "**open**" not in row] == []
    assert len(named) > 60
