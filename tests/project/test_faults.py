"""The faults of `make faults`: their heart in `make test`, all of them in `make test-all`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import faults

HEART = {"cuts", "wrong_files", "answers", "settings", "wrong_numbers"}


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
