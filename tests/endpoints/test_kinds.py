"""Every kind of endpoint from features to the report: trained, scored, compared, drawn and told of; and what is refused."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from kinds_cohort import ENDPOINTS, ROLES, config_of, make_features, run_steps
from lifelines.statistics import logrank_test
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score

from mil.bags.table import make_bags
from mil.config import Config, EndpointSpec
from mil.endpoints.survival import risk_groups, stratified_log_rank
from mil.errors import MilError
from mil.figures import FIGURES, draw_figure
from mil.metrics.score import curves_and_folds, score
from mil.results.results import Results
from mil.slides.sheet import read_cohort
from mil.tables import write_table

pytestmark = pytest.mark.slow

OWN = {"grade": {"roc_by_class", "confusion"}, "relapse": {"survival_by_risk"}, "marker": {"predicted_vs_observed"}}
SHARED = {
    "auroc_by_strategy", "strategy_differences", "transfer_matrix",
    "cv_box_plots", "external_table", "learning_curves", "patient_flow", "cohort_table", "federation_diagram", "ledger",
    "heterogeneity", "communication",
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(OWN))
def results(request, tmp_path_factory) -> Results:
    return Results.open(run_steps(tmp_path_factory.mktemp(request.param), request.param))


def by_others(results: Results, site: str) -> float:
    """The primary measure of FedAvg at a site, by somebody else's code, from the predictions as they lie on disk."""
    table = pd.read_csv(results.folder / "predictions" / f"{results.main}.csv")
    table = table[table["site"] == site]
    numbers = table.select_dtypes("number").columns.difference(["repeat", "fold"])
    means = table.groupby("patient_id")[list(numbers)].mean()
    classes = ENDPOINTS["grade"]["classes"]
    if results.endpoint == "grade":
        means["label"] = table.drop_duplicates("patient_id").set_index("patient_id")["label"]
    held_out = (table["split"] == "held_out").all()
    parts = [part for _, part in table.groupby(["repeat", "fold"])] if held_out else [means]
    if results.endpoint == "grade":
        each = []
        for name in classes:
            masks = [part["label"] == name for part in parts]
            pairs = [mask.sum() * (~mask).sum() for mask in masks]
            areas = [roc_auc_score(mask, part[f"score_{name}"]) for mask, part in zip(masks, parts, strict=True)]
            each.append(np.average(areas, weights=pairs))
        return float(np.mean(each))
    if results.endpoint == "relapse":
        return in_order(parts)
    ranks = means[["label", "score"]].rank()
    if held_out:
        ranks -= ranks.groupby(table.set_index("patient_id")["fold"]).transform("mean")
    return float(pearsonr(ranks["label"], ranks["score"]).statistic)


def in_order(parts: list[pd.DataFrame]) -> float:
    """Share of the pairs of known order whose first patient has the higher score, over pairs of one part."""
    right = known = 0.0
    for part in parts:
        for first in part[part["label"] == 1].itertuples():
            later = part[(part["time"] > first.time) | ((part["time"] == first.time) & (part["label"] == 0))]
            known += len(later)
            right += (later["score"] < first.score).sum() + (later["score"] == first.score).sum() / 2
    return right / known


def test_scores_are_those_of_the_predictions_and_find_the_signal(results):
    kind, table = results.kind, results.metrics(results.main)
    rows = table[(table["metric"] == kind.primary.name) & (table["split"] != "transfer")].set_index("site")
    for site in ROLES:
        assert rows.loc[site, "value"] == pytest.approx(by_others(results, site))
    for group in ("training sites", "external sites"):
        row = table[(table["primary"] == 1) & (table["site"] == group)].iloc[0]
        assert row["metric"] == f"{kind.primary.name}_within_sites"
        assert kind.primary.chance < row["low"] < row["value"] < row["high"] <= 1


def test_arms_are_compared_pair_by_pair(results):
    table = results.comparisons()
    quoted = table[table["primary"] == 1]
    assert set(quoted["factor"]) == {"strategy"}
    assert set(quoted["site"]) == {"training sites", "external sites"}
    held_out = quoted[quoted["site"] == "training sites"]
    assert held_out["method"].str.startswith("corrected resampled t-test").all()
    assert len(held_out.groupby(["first", "second"])) == 3  # local, pooled and FedAvg, two by two
    assert (quoted["low"] <= quoted["difference"]).all()
    assert quoted["p_adjusted"].between(0, 1).all()
    assert not table["metric"].str.contains("auroc").any() or results.endpoint == "grade"


def test_figures_that_make_sense_are_drawn_and_the_others_say_why_not(results):
    drawn, left_out = set(), {}
    for path in sorted((results.folder / "figures").glob("*.json")):
        words = json.loads(path.read_text())
        if words["left_out"]:
            left_out[words["name"].split(".")[0]] = words["left_out"]
        else:
            drawn.add(words["name"])
            assert "{" not in words["caption"]
            assert words["is_table"] or (results.folder / "figures" / f"{words['name']}.png").is_file()
            assert len(pd.read_csv(results.folder / "figures" / f"{words['name']}.csv"))
    assert drawn == SHARED | OWN[results.endpoint]
    assert drawn | set(left_out) == set(FIGURES)
    kind = results.kind.name
    for name in set().union(*OWN.values()) - OWN[results.endpoint]:
        assert left_out[name].startswith(f"the endpoint {results.endpoint} is of kind {kind}; this figure is drawn for")


def test_the_report_tells_the_measure_and_never_another(results):
    page = (results.folder / "report/index.html").read_text()
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", text)
    title = results.kind.primary.title.replace("'", "&#39;")
    assert f"{title} of FedAvg on external sites" in text
    assert f"{title} by model, strategy and site" in text
    assert f"Paired comparisons of {title}" in text
    assert results.kind.better in text
    assert "nan" not in re.findall(r"[A-Za-z]+", text)
    if results.endpoint != "grade":
        told = text.split("Left out")[0]
        assert "AUROC" not in re.sub(r"AUROC of a logistic regression|AUROC, site", "", told)


def test_groups_of_risk_are_halves_of_what_each_model_judges(results):
    if results.endpoint != "relapse":
        pytest.skip("of survival only")
    predictions = results.predictions(results.main)
    scope = results.main_scope("external sites")
    table = risk_groups(scope, predictions)
    assert len(table) == len(scope.table)
    one, other = (table[table["higher"] == group] for group in (1, 0))
    tested = logrank_test(one["time"], other["time"], one["event"], other["event"])
    assert stratified_log_rank(table) == pytest.approx(tested.p_value)
    # other times and events, and another zero of a model's log hazards, change no group
    turned = predictions.assign(time=predictions["time"] + 7, label=1 - predictions["label"])
    turned["score"] += 10 * turned["fold"]
    assert (risk_groups(scope, turned)["higher"] == table["higher"]).all()
    inside = risk_groups(results.main_scope("training sites"), turned)
    fold = turned[turned["split"] == "held_out"].set_index("patient_id")["fold"]
    share = inside.groupby(inside["patient_id"].map(fold))["higher"].mean()
    assert share.between(0.5, 0.55).all()  # the middle one of an odd number is at higher risk


def bags_of(folder, endpoint, edit):
    """The bag table of an endpoint after `edit` of the patient table's lines."""
    folder.mkdir(exist_ok=True)
    make_features(folder, 8)
    lines = (folder / "patients.csv").read_text().splitlines()
    (folder / "patients.csv").write_text("\n".join(edit(lines)) + "\n")
    config = Config.model_validate(config_of(folder, (endpoint,)))
    spec = EndpointSpec.model_validate(ENDPOINTS[endpoint])
    cohort = read_cohort(config.slides, [spec.column])
    census = cohort.slides[["slide_id", "patient_id", "site"]].assign(state="ok", reason="", num_tiles=24)
    return make_bags(cohort, census, config.slides.roles, spec)[0]


def cell(lines, row, column, value):
    """The lines with one cell changed."""
    place = lines[0].split(",").index(column)
    cells = lines[row].split(",")
    cells[place] = value
    return [*lines[:row], ",".join(cells), *lines[row + 1 :]]


@pytest.mark.parametrize(
    ("endpoint", "edit", "said"),
    [
        ("relapse", lambda lines: cell(lines, 3, "months", "-4"), "months = '-4', which is no positive number"),
        ("grade", lambda lines: cell(lines, 3, "grade", "huge"), "grade = 'huge', which is none of low, middle, high"),
        ("marker", lambda lines: cell(lines, 3, "marker", "nan"), "marker = 'nan', which is no number"),
        ("relapse", lambda lines: cell(lines, 3, "relapsed", "maybe"), "relapsed = 'maybe', which is neither"),
        (
            "relapse",
            lambda lines: [lines[0], *(cell([lines[0], one], 1, "relapsed", "0")[1] for one in lines[1:])],
            "all 8 patients have relapsed = 0; a training site needs",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_patient_or_site(endpoint, edit, said, tmp_path):
    with pytest.raises(MilError) as caught:
        bags_of(tmp_path / "data", endpoint, edit)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_site_without_a_class_says_so_in_scores_and_figures(results, tmp_path):
    """The external site's patients of one class only (no event; one number): blank with the reason, and nothing crashes."""
    alike = {"grade": "low", "relapse": 0, "marker": 50.0}[results.endpoint]
    for part in ("census", "runs", "bags", "baselines"):
        (tmp_path / part).symlink_to(results.folder / part)
    table = results.predictions(results.main)
    table.loc[table["site"] == "east", "label"] = alike
    (tmp_path / "predictions").mkdir()
    table.to_csv(tmp_path / "predictions" / f"{results.main}.csv", index=False)
    changed = Results(tmp_path, results.config)
    inner = results.table("runs", results.main, "inner.csv") if changed.kind.thresholds else None
    measured = score(changed.predictions(results.main), results.config.metrics, inner=inner, kind=changed.kind)
    write_table(measured, tmp_path / "metrics" / f"{results.main}.csv")
    curves = curves_and_folds(changed.predictions(results.main), results.config.metrics, inner, changed.kind)["curves"]
    write_table(curves, tmp_path / "metrics" / f"{results.main}.curves.csv")
    for name in OWN[results.endpoint]:
        draw_figure(name, changed, results.config.figures)
        words = json.loads((tmp_path / f"figures/{name}.json").read_text())
        assert words["left_out"] == ""
    assert not changed.kind.has_within(changed.main_scope("east").table)
    assert changed.kind.undefined(changed.main_scope("east").table)
