"""Figures and report of cohorts that are not the demo: many sites with long names, few patients, blanks, other endpoints."""

import json
import re
import shutil
import warnings

import pandas as pd
import pytest
from cohort_results import build_results, score_all, shared_results
from copies import copied
from crowding import defects
from matplotlib.text import Text

from mil.config import Config
from mil.figures import FIGURES, draw_figure
from mil.figures.save import save
from mil.metrics.cohort import characteristics
from mil.metrics.score import curves_and_folds, score
from mil.report.build import build
from mil.report.claims import headline
from mil.report.slide_viewer import write_viewer
from mil.results.results import Results
from mil.tables import read_table, write_table

pytestmark = pytest.mark.slow

MANY = {
    "Universitaetsklinikum-Muenchen": "train",
    "Centre_Leon_Berard_Lyon-Sud_02": "train",
    "Istituto-Europeo-di-Oncologia-M": "train",
    "Gustave_Roussy_Villejuif_Paris": "train",
    "Karolinska-Universitetssjukhus": "train",
    "Szpital-Uniwersytecki-Krakow-1": "external",
    "Hospital_Clinic_de_Barcelona_1": "external",
    "Tokyo-University-Hospital-Hongo": "external",
}
ALONE = {"solo": "train"}


def spoil(patients: pd.DataFrame) -> pd.DataFrame:
    """One site of three patients, one of one class, clinical cells blank here and there, words that are not ASCII."""
    few = patients["site"] == "Gustave_Roussy_Villejuif_Paris"
    patients = patients[~few | (patients.groupby("site").cumcount() < 3)].reset_index(drop=True)
    patients.loc[patients["site"] == "Hospital_Clinic_de_Barcelona_1", "response"] = "0"
    clinical = ["age", "grade", "ki67", "t_stage", "n_stage", "til_percent", "time_months", "event"]
    patients.loc[patients.index % 3 == 0, clinical] = ""
    patients.loc[patients["site"] == "Szpital-Uniwersytecki-Krakow-1", clinical] = ""
    patients["hôpital_émetteur"] = ["Zürich", "Αθήνα", "Kraków – Śródmieście"] * (len(patients) // 3) + ["Zürich"] * (
        len(patients) % 3
    )
    return patients


def made(folder, **plan) -> Results:
    build_results(folder, **plan)
    results = Results.open(folder / "results")
    score_all(results)
    return results


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Results:
    return made(
        tmp_path_factory.mktemp("many"), sites=MANY, patients_a_site=6, edit=spoil, folds=2, repeats=1,
        experiments=("attention_local", "attention_pooled", "attention_fedavg"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Results:
    return made(tmp_path_factory.mktemp("alone"), sites=ALONE, patients_a_site=8, experiments=("attention_local",))


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> Results:
    return shared_results(tmp_path_factory.getbasetemp())


COHORTS = ["many", pytest.param("alone", marks=pytest.mark.extended)]  # the usual one: test_figures.py


@pytest.mark.parametrize("name", list(FIGURES))
@pytest.mark.parametrize("cohort", COHORTS)
def test_no_text_is_cut_small_or_on_another(cohort, name, request):
    results = request.getfixturevalue(cohort)
    drawn = FIGURES[name].draw(results, results.config.figures, site_of(name, results))
    assert defects(drawn) == []
    assert drawn.figure is not None or drawn.left_out
    stem = ".".join(filter(None, (name, site_of(name, results))))
    save(stem, drawn, results.folder / "figures", results.config.figures.model_copy(update={"formats": ("svg",)}))


def site_of(name, results) -> str | None:
    """The first site where the figure is drawn per site."""
    return results.sites[0] if FIGURES[name].per_site else None


@pytest.mark.parametrize("cohort", COHORTS)
def test_the_report_of_an_odd_cohort_is_whole(cohort, request):
    results = request.getfixturevalue(cohort)
    spec = results.config.figures.model_copy(update={"formats": ("svg",)})
    for name in FIGURES:
        if not list((results.folder / "figures").glob(f"{name}.*json")):  # the test above was left out
            draw_figure(name, results, spec, site_of(name, results))
    text = build(results).pages["index.html"]
    assert 'id="finding"' in text
    words = re.sub(r"data:[^\"')]+|<script.*?</script>", "", text.split('id="settings"')[0], flags=re.DOTALL)
    assert re.findall(r".{30}\bnan\b.{30}", words, flags=re.IGNORECASE) == []
    if cohort == "alone":
        assert "There is no external site" in text
        assert "it takes two training sites" in text


def test_groups_without_values_and_slides_without_mpp_are_left_out_of_their_figures(usual, tmp_path):
    """One class at every external site: no permutation has a value, and no interval is known; features alone: no mpp."""
    folder = tmp_path / "results"
    copied(usual.folder, folder)
    results = Results.open(folder)
    places = [*folder.glob("metrics/*.csv"), folder / "baselines/response/metrics.csv"]
    for path in [path for path in places if {"low", "high"} <= set(read_table(path).columns)]:
        write_table(read_table(path).assign(low=None, high=None), path)
    path = folder / "baselines/response/permutations.csv"
    permutations = read_table(path)
    write_table(permutations[permutations["site"] == "training sites"], path)
    for path in folder.glob("census/*.csv"):
        write_table(read_table(path).assign(mpp=None), path)
    controls = FIGURES["null_controls"].draw(results, results.config.figures, None)
    assert "external sites: " not in controls.caption.partition("Intervals")[0]
    assert "nan" not in controls.caption
    assert "not stated in" in {text.get_text()[:13] for text in FIGURES["heterogeneity"].draw(
        results, results.config.figures, None).figure.findobj(Text)}  # fmt: skip
    fact = headline(results)[-1]
    assert " " not in fact.number
    assert "[" not in fact.what


def test_subgroups_of_other_experiments_alone_are_no_figure_of_the_main_one(usual, tmp_path):
    """As where nobody whom the main experiment judges is held out, external or of a site left out."""
    folder = tmp_path / "results"
    copied(usual.folder, folder)
    path = folder / "metrics/clinical/subgroups.csv"
    table = read_table(path)
    write_table(table[table["experiment"] != usual.main], path)
    drawn = FIGURES["subgroups"].draw(Results.open(folder), usual.config.figures, None)
    assert "judges no patient who is held out" in drawn.left_out


LABELS = {"multiclass": ["A", "B", "C"], "regression": [0.25, 1.5, 3.0], "survival": [0, 1, 1]}


@pytest.mark.parametrize("kind", list(LABELS))
def test_an_endpoint_without_two_classes_is_told_of_not_crashed_on(kind, usual, tmp_path):
    more = {"multiclass": {"classes": LABELS[kind]}, "survival": {"event": "event"}}.get(kind, {})
    settings = json.loads(usual.config.to_json())
    settings["endpoints"]["response"] |= {"kind": kind, **more}
    results = Results(tmp_path, Config.model_validate(settings))
    bags = usual.bags("response")
    labels = dict(zip(bags["patient_id"], (LABELS[kind] * len(bags))[: len(bags)], strict=True))
    time = {"time": 12.0} if kind == "survival" else {}
    write_table(bags.assign(label=bags["patient_id"].map(labels), **time), tmp_path / "bags/response.csv")
    write_table(usual.flow("response"), tmp_path / "bags/response.flow.csv")
    predictions = usual.predictions("attention_fedavg")
    predictions = predictions.assign(label=predictions["patient_id"].map(labels), **time)
    if kind == "multiclass":
        half = predictions["score"] / 2
        predictions = predictions.assign(score_A=half, score_B=0.5, score_C=0.5 - half)
    write_table(predictions, tmp_path / "predictions/attention_fedavg.csv")
    for part in ("census", "runs", "sites"):
        (tmp_path / part).symlink_to(usual.folder.resolve() / part)
    write_table(
        score(predictions, results.config.metrics, results.experiments["attention_fedavg"], kind=results.kind),
        tmp_path / "metrics/attention_fedavg.csv",
    )
    for table, values in curves_and_folds(predictions, results.config.metrics, kind=results.kind).items():
        write_table(values, tmp_path / f"metrics/attention_fedavg.{table}.csv")
    write_table(characteristics(results, results.config.metrics.confidence), tmp_path / "metrics/cohort.csv")
    drawn = []
    for name in FIGURES:
        site = "east" if FIGURES[name].per_site else None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_figure(name, results, results.config.figures.model_copy(update={"formats": ("svg",)}), site)
        words = json.loads((tmp_path / f"figures/{name}{f'.{site}' if site else ''}.json").read_text())
        drawn += [name] * (not words["left_out"])
        excused = (kind, "not among the results", "no experiment", "stands beside", "has no row")
        assert words["left_out"] == "" or any(one in words["left_out"] for one in excused), words
    own = {"multiclass": {"roc_by_class", "confusion"}, "regression": {"predicted_vs_observed"}}.get(kind, set())
    assert {"patient_flow", "cohort_table", "federation_diagram", "learning_curves", "ledger"} | own <= set(drawn)
    assert not {"roc_by_site", "calibration", "heatmaps", "kaplan_meier"} & set(drawn)
    assert write_viewer(results, tmp_path / "viewer") == []
    text = build(results).pages["index.html"]
    assert f"is of kind {kind}" in text
    assert "Left out" in text


def test_a_column_that_is_called_as_the_endpoint_keeps_rows_of_its_own(usual, tmp_path):
    """Both had the variable `age`; the table ended in a traceback."""
    shutil.copytree(usual.folder / "census", tmp_path / "census")
    write_table(usual.bags("response"), tmp_path / "bags/age.csv")
    usual.patients().to_csv(tmp_path / "patients.csv", index=False)
    settings = json.loads(usual.config.to_json())
    settings["slides"]["patients"] = str(tmp_path / "patients.csv")
    settings["endpoints"] = {"age": settings["endpoints"]["response"]}
    for experiment in settings["experiments"].values():
        experiment["endpoint"] = "age"
    renamed = Results(tmp_path, Config.model_validate(settings))
    write_table(characteristics(renamed, 0.95), tmp_path / "metrics/cohort.csv")
    drawn = FIGURES["cohort_table"].draw(renamed, renamed.config.figures).data
    assert {"Positive for age", "Age (patient table)"} <= set(drawn["Characteristic"])


def test_differences_are_marked_at_the_level_of_the_settings(usual):
    """They were at p < 0.05 beside intervals of another confidence."""
    metrics = usual.config.metrics.model_copy(update={"confidence": 0.8})
    results = Results(usual.folder, usual.config.model_copy(update={"metrics": metrics}))
    caption = FIGURES["strategy_differences"].draw(results, results.config.figures).caption
    assert "80% intervals" in caption
    assert "Filled: p < 0.2." in caption
