"""Patients without a label in bags and predictions: every table of the evaluation stays the same to the byte."""

import pandas as pd
import pytest
from cohort_results import score_models, shared_results
from without_label import with_more_patients

from mil.leaks.checks import findings_table
from mil.leaks.inputs import input_checks

pytestmark = pytest.mark.slow


def test_every_table_of_the_evaluation_is_the_same_to_the_byte(tmp_path_factory, tmp_path):
    results = shared_results(tmp_path_factory.getbasetemp())
    more = with_more_patients(results, tmp_path / "results")
    paths = [path.relative_to(results.folder) for path in results.folder.glob("metrics/**/*.csv")]
    assert len(paths) > 10
    for path in paths:
        (more.folder / path).unlink()
    score_models(more)
    assert [path for path in paths if (more.folder / path).read_bytes() != (results.folder / path).read_bytes()] == []
    found = [findings_table(input_checks(one, "response")) for one in (results, more)]
    pd.testing.assert_frame_equal(*found)
