"""Every registered figure draws from a small results folder, leaves its files, and says why where it cannot."""

import json
import re
import shutil
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from cohort_results import shared_results
from copies import copied
from crowding import defects
from matplotlib.collections import FillBetweenPolyCollection

import mil
from mil.errors import Absent, MilError
from mil.figures import FIGURES, draw_figure
from mil.figures.auroc_by_strategy import _lines
from mil.figures.cluster_enrichment import _where as where_tiles_are
from mil.figures.federation_diagram import _round as what_moves
from mil.figures.heatmaps import choose
from mil.figures.how_made import correction, how_tested, with_intervals
from mil.figures.save import save
from mil.figures.style import (
    DOUBLE_MM,
    ENSEMBLE_COLOUR,
    SITE_COLOURS,
    SITE_MARKERS,
    readable,
    site_colour,
    site_marker,
    use_style,
)
from mil.figures.top_bottom_tiles import PER_PATIENT, pick
from mil.metrics.agreement import reviewed
from mil.paper import PROTOCOL
from mil.results.results import Results
from mil.statistics.arms import EXTERNAL_SITES, TRAINING_SITES
from mil.strategies import STRATEGIES
from mil.tables import write_table

pytestmark = pytest.mark.slow

PER_SITE = [name for name in FIGURES if FIGURES[name].per_site]
REVIEWED = "review_statistics"  # needs what people fill in; has a test of its own
OVERALL = [
    name
    for name in FIGURES
    if not FIGURES[name].per_site and name != REVIEWED and "binary" in FIGURES[name].endpoints  # others: test_kinds.py
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return shared_results(tmp_path_factory.getbasetemp())


# columns from which each panel of a figure can be drawn again
REDRAWN = {
    "calibration": {"score", "share", "low", "high", "label", "name", "value"},
    "cluster_enrichment": {"p_adjusted", "cluster0", "label", "patient_id"},
    "decision_curves": {"threshold", "net_benefit", "low", "high", "model", "site"},
    "kaplan_meier": {"time", "survival", "event", "group"},
    "learning_curves": {"mean", "low", "high", "round", "rounds"},
    "patient_flow": {"step", "reason", "patients", "slides"},
    "pr_by_site": {"recall", "precision", "average_precision", "prevalence"},
    "roc_by_site": {"false_positive_rate", "true_positive_rate", "band_low", "band_high", "auroc"},
    "score_vs_clinical": {"analysis", "value", "p_adjusted", "score", "site", "age", "ki67"},
}


@pytest.mark.parametrize("name", OVERALL)
def test_every_figure_draws(results, name):
    drawn = FIGURES[name].draw(results, results.config.figures)
    assert defects(drawn) == []
    files = save(name, drawn, results.folder / "figures", results.config.figures)
    words = json.loads((results.folder / "figures" / f"{name}.json").read_text())
    assert words["left_out"] == ""
    assert words["caption"].endswith(".")
    assert words["n"]
    assert all(path.stat().st_size > 0 for path in files)
    assert {path.suffix for path in files} == {".pdf", ".svg", ".png", ".csv", ".json"}
    assert len(pd.read_csv(results.folder / "figures" / f"{name}.csv"))
    assert set(drawn.data.columns) >= REDRAWN.get(name, set())
    pdf = next(path for path in files if path.suffix == ".pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType outlines inside, as journals ask; none drawn by Type 3 procedures
    assert b"/Type3" not in pdf
    assert 0 < words["width_mm"] <= DOUBLE_MM


@pytest.mark.parametrize("name", PER_SITE)
def test_every_figure_of_a_site_draws(results, name):
    drawn = FIGURES[name].draw(results, results.config.figures, "east")
    assert defects(drawn) == []
    files = save(f"{name}.east", drawn, results.folder / "figures", results.config.figures)
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
    for part in ("predictions", "bags", "metrics"):
        copied(results.folder / part, tmp_path / part)
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


def test_heat_maps_head_each_slide_with_the_tile_auroc_of_the_table(results, monkeypatch):
    """A number in the figure that the table of `mil localise` does not hold would be computed twice."""
    table = results.slide_aurocs(results.main)

    def headings() -> list[str]:
        drawn = FIGURES["heatmaps"].draw(results, results.config.figures, results.sites[0])
        texts = [text.get_text() for axes in drawn.figure.axes for text in axes.texts]
        return [text for text in texts if text.startswith("tile AUROC")]

    shown = table[table["site"] == results.sites[0]]["auroc"].map("tile AUROC {:.2f}".format)
    assert headings()
    assert set(headings()) <= set(shown)
    monkeypatch.setattr(Results, "slide_aurocs", lambda self, name: table.assign(auroc=0.125))
    assert set(headings()) == {"tile AUROC 0.12"}


def test_the_montage_takes_few_tiles_of_a_patient():
    tiles = pd.DataFrame(
        {"slide_id": "s", "patient_id": ["p"] * 5 + ["q"], "label": 1, "x": range(6), "y": 0, "relative": range(6)}
    )
    assert [one.x for one in pick(tiles, "top", 4)] == [5, 4, 3]
    assert [one.x for one in pick(tiles, "bottom", 2)] == [0, 1]
    assert PER_PATIENT == 2


def test_the_review_sheet_tells_nothing_and_its_statistics_find_what_is_there(results, tmp_path):
    draw_figure("review_sheet", results, results.config.figures, "east")
    folder = results.folder / "figures/review_sheet.east"
    sheet, key = pd.read_csv(folder / "sheet.csv", dtype=str), pd.read_csv(folder / "key.csv")
    patterns = list(results.config.figures.patterns)
    assert list(sheet.columns) == ["tile", *patterns, "remark"]
    assert sheet[patterns].isna().all(axis=None)
    assert len(list(folder.glob("east_*.png"))) == len(sheet) == len(key)
    assert key["kind"].value_counts()["top"] == len(key) / 2
    assert key["kind"].ne(key["kind"].shift()).sum() > 3  # shuffled
    paths = []
    for reviewer in range(3):
        filled = sheet.assign(**dict.fromkeys(patterns, "0"))
        filled["lymphocytes"] = (key["kind"] == "top").astype(int).astype(str)
        filled.loc[reviewer, "fat"] = "1"
        paths.append(tmp_path / f"reviewer{reviewer}.csv")
        filled.to_csv(paths[-1], index=False)
    spec = results.config.figures.model_copy(update={"reviews": tuple(map(str, paths))})
    named = Results(copied(results.folder, tmp_path / "results"), results.config.model_copy(update={"figures": spec}))
    write_table(reviewed(named), named.folder / "metrics/reviews.csv")
    drawn = FIGURES[REVIEWED].draw(named, spec)
    table = drawn.data.set_index("pattern")
    assert drawn.figure is not None
    assert table.loc["lymphocytes", "p_adjusted"] < 0.001
    assert table.loc["lymphocytes", "kappa"] == 1
    assert table.loc["fat", "kappa"] < 0.1
    (tmp_path / "reviewer0.csv").write_text(
        (tmp_path / "reviewer0.csv").read_text().replace("east_001,", "east_001,yes", 1)
    )
    with pytest.raises(MilError, match="write 0 or 1"):
        reviewed(named)


def test_sites_and_strategies_share_no_colour(results):
    assert not set(SITE_COLOURS) & {kind.colour for kind in STRATEGIES.values()}
    assert len({site_colour(site, results.sites) for site in results.sites}) == len(results.sites)
    many = [f"site{number:03d}" for number in range(len(SITE_COLOURS) * len(SITE_MARKERS))]
    assert len({(site_colour(site, many), site_marker(site, many)) for site in many}) == len(many)


def test_columns_of_many_sites_stand_in_lines_of_eight():
    training, external = ([f"{role}{n}" for n in range(10)] for role in ("t", "e"))
    few, many = [*training[:3], TRAINING_SITES, *external[:4]], [*training, TRAINING_SITES, *external, EXTERNAL_SITES]
    assert _lines(few) == [few]
    lines = _lines(many)
    assert [len(line) for line in lines] == [6, 5, 6, 5]
    assert [scope for line in lines for scope in line] == many
    assert lines[1][-1] == TRAINING_SITES


def test_only_all_sites_together_have_a_band_where_sites_are_many(results, monkeypatch):
    def bands() -> int:
        figure = FIGURES["learning_curves"].draw(results, results.config.figures, None).figure
        return sum(isinstance(one, FillBetweenPolyCollection) for axes in figure.axes for one in axes.collections)

    each = bands()
    monkeypatch.setattr("mil.figures.learning_curves.MOST_BANDS", 0)
    assert 0 < bands() < each


def test_every_strategy_has_a_name_and_a_colour_of_its_own():
    assert all(kind.title for kind in STRATEGIES.values())
    colours = [ENSEMBLE_COLOUR, *(kind.colour for kind in STRATEGIES.values())]
    assert all(colours)
    assert len(set(colours)) == len(colours)


def test_light_colours_are_darkened_for_text():
    assert readable("#332288") == "#332288"
    assert readable("#88ccee") != "#88ccee"


def test_every_figure_of_the_protocol_is_there_and_every_figure_is_in_it():
    assert {FIGURES[name].number for name in FIGURES} == set(PROTOCOL)
    ids = [part for number in PROTOCOL for part in number.split(", ")]
    assert ids[0] == "F1a"
    assert ids[-1] == "ED10"
    assert len(set(ids)) == len(ids)


CAPTIONS = ["auroc_by_strategy", "null_controls", "transfer_matrix"]
MORE_CAPTIONS = ["ablations", "external_table", "roc_by_site", "site_value"]


@pytest.mark.parametrize(
    "name", [*CAPTIONS, *(pytest.param(name, marks=pytest.mark.extended) for name in MORE_CAPTIONS)]
)
def test_captions_name_the_methods_of_the_table_of_metrics_and_no_other(results, tmp_path, name):
    """With the method of every interval changed in the tables, the caption names that one alone."""
    changed = Results.open(copied(results.folder, tmp_path / "results"))
    tables = [*changed.folder.glob("metrics/*_*.csv"), *changed.folder.glob("baselines/*/*.csv")]
    for path in tables:
        table = pd.read_csv(path)
        if {"low", "value"} <= set(table) and "difference" not in table:
            bounds = {"low": table["value"] - 0.1, "high": table["value"] + 0.1}
            table.assign(**bounds, method="some method").to_csv(path, index=False)
    caption = FIGURES[name].draw(changed, changed.config.figures).caption
    assert "95% intervals (some method" in caption
    assert not re.search("DeLong|Newcombe|held out:", caption)


def test_the_federations_caption_says_what_the_strategy_moves():
    said = {name: what_moves(STRATEGIES[name]()) for name in ("fedavg", "fedper", "cyclic")}
    assert "sends model weights to the training sites, each trains" in said["fedavg"]
    assert said["fedper"].count("model weights but for the layers that stay") == 2
    assert "sends model weights to one training site after another" in said["cyclic"]


def test_clusters_point_to_no_figure_of_tiles_where_no_site_has_slides(results):
    features = dict.fromkeys(results.sites, "")
    alone = results.config.model_copy(
        update={"slides": results.config.slides.model_copy(update={"features": features})}
    )
    assert where_tiles_are(results).endswith("in the next figure.")
    assert where_tiles_are(Results(results.folder, alone)) == ""


def test_the_cohort_table_names_the_columns_that_it_leaves_out(results, tmp_path):
    """A ward of nine names has no row; a column without a cell needs none."""
    patients = results.patients().assign(blank="", ward=[f"ward {n % 9}" for n in range(len(results.patients()))])
    patients.to_csv(tmp_path / "patients.csv", index=False)
    slides = results.config.slides.model_copy(update={"patients": str(tmp_path / "patients.csv")})
    wider = Results(results.folder, results.config.model_copy(update={"slides": slides}))
    said, usual = (FIGURES["cohort_table"].draw(one, one.config.figures).caption for one in (wider, results))
    assert said == f"{usual} Columns of more than 8 different texts have no row: Ward."


def test_intervals_and_tests_are_described_by_the_rows_shown():
    few = "no interval: 8 positive and 11 negative patients in pairs; 10 of each needed"
    rows = pd.DataFrame(
        {"value": [0.8, 0.7, np.nan], "low": [0.5, np.nan, np.nan], "method": ["Newcombe", few, "not defined"]}
    )
    newcombe = "Newcombe, with fewer than 10 patients of a class"
    assert with_intervals(rows[:1], 0.95) == f"with 95% intervals ({newcombe})"
    assert with_intervals(rows, 0.95) == f"with 95% intervals ({newcombe}; none where there are too few patients)"
    assert with_intervals(rows[1:], 0.95) == "without intervals (there are too few patients)"
    differences = pd.DataFrame(
        {
            "difference": 0.1, "p": [0.2, np.nan], "site": ["A", "B"], "method": ["DeLong, paired", few.replace("interval", "test")],
            "correction": ["Holm, 1 comparisons of model on single sites", "Holm, 0 comparisons of encoder on single sites"],
        }
    )  # fmt: skip
    assert how_tested(differences) == "Test: DeLong, paired. Differences without a test, since patients are too few: B."
    assert how_tested(differences[1:]) == "No difference is tested: patients are too few."
    unvaried = differences.assign(p=[np.nan, np.nan])
    unknown = "these patients do not show how much the difference varies"
    assert how_tested(unvaried[:1]) == f"No difference is tested: {unknown}."
    assert how_tested(unvaried) == f"No difference is tested: patients are too few (B); {unknown} (A)."
    assert correction(differences) == "Holm's correction over 1 comparison of model on single sites"
    assert correction(differences[1:]) == ""


def test_a_figure_is_drawn_by_its_number_as_by_mil_plot(results):
    assert {path.name.split(".")[0] for path in mil.draw_figure("ED10", results.folder)} == {"null_controls"}
    with pytest.raises(MilError, match="unknown figure 'null_control'; did you mean 'null_controls'"):
        mil.draw_figure("null_control", results.folder)


def test_ticks_of_differences_do_not_touch(results):
    """Of small differences, too: numbers of 0.05 are as wide as the space between them."""
    drawn = FIGURES["strategy_differences"].draw(results, results.config.figures)
    drawn.figure.canvas.draw()
    for axes in drawn.figure.axes[:-1]:
        boxes = [
            label.get_window_extent()
            for label in axes.get_xticklabels()
            if label.get_text() and axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]
        ]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


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
