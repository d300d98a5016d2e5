"""Every registered figure draws from a small results folder, leaves its files, and says why where it cannot."""

import json
import shutil

import matplotlib as mpl
import pandas as pd
import pytest
from cohort_results import shared_results

from mil.errors import MilError
from mil.figures import FIGURES, Absent, Results, draw_figure
from mil.figures.heatmaps import choose
from mil.figures.style import SITE_COLOURS, STRATEGY_COLOURS, site_colour, use_style
from mil.figures.top_bottom_tiles import PER_PATIENT, pick

PER_SITE = [name for name in FIGURES if FIGURES[name].per_site]
OVERALL = [name for name in FIGURES if not FIGURES[name].per_site]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return shared_results(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", OVERALL)
def test_every_figure_draws(results, name):
    files = draw_figure(name, results, results.config.figures)
    words = json.loads((results.folder / "figures" / f"{name}.json").read_text())
    assert words["left_out"] == ""
    assert words["caption"].endswith(".")
    assert words["n"]
    assert all(path.stat().st_size > 0 for path in files)
    assert {path.suffix for path in files} == {".pdf", ".svg", ".png", ".csv", ".json"}
    assert len(pd.read_csv(results.folder / "figures" / f"{name}.csv"))


@pytest.mark.parametrize("name", PER_SITE)
def test_every_figure_of_a_site_draws(results, name):
    files = draw_figure(name, results, results.config.figures, "east")
    assert {path.name for path in files} == {f"{name}.east.{s}" for s in ("pdf", "svg", "png", "csv", "json")}
    assert json.loads(files[-1].read_text())["left_out"] == ""
    with pytest.raises(MilError, match="drawn a site"):
        FIGURES[name].draw(results, results.config.figures)
    with pytest.raises(MilError, match="did you mean 'east'"):
        FIGURES[name].draw(results, results.config.figures, "eats")


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_without_input_is_left_out_with_a_reason(results, name, tmp_path):
    empty = Results(tmp_path, results.config)
    drawn = FIGURES[name].draw(empty, results.config.figures, "east" if FIGURES[name].per_site else None)
    assert drawn.figure is None
    assert drawn.left_out


def test_pictures_of_a_figure_that_is_now_left_out_are_removed(results, tmp_path):
    shutil.copytree(results.folder / "predictions", tmp_path / "predictions")
    shutil.copytree(results.folder / "bags", tmp_path / "bags")
    moved = Results(tmp_path, results.config)
    draw_figure("roc_by_site", moved, results.config.figures)
    assert (tmp_path / "figures/roc_by_site.svg").is_file()
    shutil.rmtree(tmp_path / "predictions")
    draw_figure("roc_by_site", Results(tmp_path, results.config), results.config.figures)
    assert not (tmp_path / "figures/roc_by_site.svg").exists()
    assert json.loads((tmp_path / "figures/roc_by_site.json").read_text())["left_out"]


def test_the_same_values_give_the_same_bytes(results):
    path = results.folder / "figures/roc_by_site.pdf"
    before = [draw_figure("roc_by_site", results, results.config.figures), path.read_bytes()][1]
    draw_figure("roc_by_site", results, results.config.figures)
    assert path.read_bytes() == before


def test_heat_maps_show_hits_and_misses_chosen_by_score(results):
    chosen = choose(results, "west", 4)
    labels = [label for _, _, label, _ in chosen]
    scores = [score for _, _, _, score in chosen]
    assert labels == [1, 0, 1, 0]
    assert scores[0] >= scores[2]
    assert scores[1] <= scores[3]


def test_the_montage_takes_few_tiles_of_a_patient():
    tiles = pd.DataFrame(
        {"slide_id": "s", "patient_id": ["p"] * 5 + ["q"], "label": 1, "x": range(6), "y": 0, "relative": range(6)}
    )
    assert [one.x for one in pick(tiles, "top", 4)] == [5, 4, 3]
    assert [one.x for one in pick(tiles, "bottom", 2)] == [0, 1]
    assert PER_PATIENT == 2


def test_sites_and_strategies_share_no_colour(results):
    assert not set(SITE_COLOURS) & set(STRATEGY_COLOURS.values())
    assert len({site_colour(site, results.sites) for site in results.sites}) == len(results.sites)


def test_fonts_ship_with_the_package():
    with use_style():
        path = mpl.font_manager.findfont("Inter", fallback_to_default=False)
    assert "mil/figures/fonts" in path.replace("\\", "/")


def test_results_say_what_is_absent(results, tmp_path):
    with pytest.raises(Absent, match=r"predictions/x\.csv"):
        results.predictions("x")
    with pytest.raises(MilError, match=r"config\.json does not exist"):
        Results.open(tmp_path)
    assert results.main == "attention_fedavg"
    assert list(results.family()) == ["attention_local", "attention_pooled", "attention_fedavg"]
