"""The report's parts without its page: the chapters, the guidelines' items, a file of the viewer."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from cohort_results import shared_results

from mil.errors import Absent, MilError
from mil.figures import FIGURES
from mil.report.guidelines import ITEMS, PARTS
from mil.report.methods import methods
from mil.report.slide_viewer import _write
from mil.report.story import STORY
from mil.report.tables import TABLES
from mil.results.results import Results

pytestmark = pytest.mark.slow


def test_every_figure_has_its_place_in_the_story():
    told = [name for chapter in STORY for name in chapter.figures]
    assert sorted(told) == sorted(FIGURES)


def test_without_truth_in_the_settings_an_earlier_one_is_not_shown(tmp_path_factory):
    results = shared_results(tmp_path_factory.getbasetemp())
    assert len(results.localisation())
    without = Results(results.folder, results.config.model_copy(update={"truth": None}))
    for read in (without.localisation, lambda: without.slide_aurocs(without.main)):
        with pytest.raises(Absent, match="the settings name no truth"):
            read()


def test_the_guidelines_name_parts_that_exist(tmp_path_factory):
    results = shared_results(tmp_path_factory.getbasetemp())
    known = {"figures": set(FIGURES), "tables": set(TABLES), "sections": set(PARTS)}
    known["methods"] = {paragraph.title for paragraph in methods(results)}
    for guideline in tomllib.loads(ITEMS.read_text(encoding="utf-8"))["guideline"]:
        for item in guideline["items"]:
            for part, names in known.items():
                assert set(item.get(part, ())) <= names, item
            assert set(item) - {"item", "topic"}, item


def test_a_full_disk_under_the_viewer_is_one_line():
    with pytest.raises(MilError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        _write(Path("/dev/full"), np.zeros((8, 8, 3), np.uint8))
