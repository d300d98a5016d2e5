"""Baselines: the cohort's own folds, federated equal to pooled, real clinical tables, and simulations of the intervals."""

import importlib.util
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from cohort_results import shared_results
from copies import copied
from scipy import stats
from sklearn.linear_model import Ridge
from test_leaks import ENDPOINT, cohort
from typer.testing import CliRunner

from mil.bags.table import deal_folds
from mil.baselines.clinical_cohort import clinical_cohort
from mil.baselines.curves import _ridge
from mil.baselines.inputs import colour, fused, late_fusion, permuted
from mil.baselines.protocol import run_protocol
from mil.baselines.write import _save
from mil.cli import app
from mil.config import Config, EndpointSpec, MetricsSpec
from mil.endpoints import build_endpoint
from mil.endpoints.binary import PRIMARY
from mil.errors import MilError
from mil.metrics.score import primary, score
from mil.results.results import Results
from mil.rng import rng
from mil.statistics import delong, ranking
from mil.statistics.bootstrap import resamples
from mil.tables import write_table

pytestmark = pytest.mark.slow


def test_baselines_stand_on_the_same_folds_and_give_the_same_table_as_models():
    bags, features = cohort()
    inputs = pd.DataFrame({patient: tiles.mean(axis=0) for patient, tiles in features.items()}).T
    folded = run_protocol("clinical", inputs, bags, ENDPOINT)
    for _, table in folded.predictions.groupby("experiment"):
        build_endpoint().checked(table, "baselines")
    pooled = folded.predictions[folded.predictions["experiment"] == "clinical_pooled"]
    held = pooled[pooled["split"] == "held_out"].merge(bags[["patient_id", "repeat0"]], on="patient_id")
    assert (held["fold"] == held["repeat0"]).all()
    assert len(pooled[pooled["split"] == "external"]) == 3 * (bags["role"] == "external").sum()
    inner = folded.inner[folded.inner["experiment"] == "clinical_pooled"].merge(bags[["patient_id", "repeat0", "role"]])
    assert (inner["role"] == "train").all()
    assert (inner["fold"] != inner["repeat0"]).all()


def test_no_baseline_is_fitted_on_a_patient_it_is_judged_on():
    bags, features = cohort()
    inputs = pd.DataFrame({patient: tiles.mean(axis=0) for patient, tiles in features.items()}).T
    before = run_protocol("x", inputs, bags, ENDPOINT, ("pooled",)).predictions
    spoiled, other = inputs.copy(), bags.copy()
    judged = bags.loc[bags["repeat0"] == 0, "patient_id"]
    outside = bags.loc[bags["role"] == "external", "patient_id"]
    spoiled.loc[[*judged.iloc[1:], *outside.iloc[1:]]] = 1e3
    other["label"] = np.where(bags["patient_id"].isin([*judged, *outside]), 1 - bags["label"], bags["label"])
    after = run_protocol("x", spoiled, other, ENDPOINT, ("pooled",)).predictions
    kept = [judged.iloc[0], outside.iloc[0]]
    scores = [t[(t["fold"] == 0) & t["patient_id"].isin(kept)]["score"].tolist() for t in (before, after)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_values_far_from_zero_are_not_rounded_and_a_blank_is_the_mean():
    """Times in seconds since 1970 give the scores that their distances from any other day give."""
    bags, features = cohort()
    inputs = pd.DataFrame({"seconds": {patient: float(tiles.mean()) for patient, tiles in features.items()}})
    inputs.iloc[3] = np.nan
    near, far = (run_protocol("x", inputs + shift, bags, ENDPOINT, ("pooled",)).predictions for shift in (0, 1.7e9))
    assert far["score"].to_numpy() == pytest.approx(near["score"].to_numpy(), abs=1e-3)
    assert near["score"].nunique() > len(bags)


def test_a_cohort_gets_every_baseline_it_has_columns_for(tmp_path_factory):
    results = shared_results(tmp_path_factory.getbasetemp())
    predictions, table = results.baselines("response"), results.baseline_metrics("response")
    names = set(predictions["experiment"])
    assert {"clinical_local", "clinical_federated", "annotation_pooled", "bag_size_pooled", "site_pooled"} <= names
    assert {"mean_features_pooled", "permuted_pooled", "fusion_fedavg", "fusion_local"} <= names
    site = primary(table[table["experiment"] == "site_pooled"])
    assert site["value"].tolist() == pytest.approx([0.5] * len(site))  # knows the site, so nothing within one
    assert set(table["experiment"]) == names


def test_of_several_experiments_with_one_strategy_the_main_one_is_fused(tmp_path_factory, tmp_path):
    shared = shared_results(tmp_path_factory.getbasetemp())
    folder = copied(shared.folder, tmp_path / "results")
    config = json.loads((folder / "config.json").read_text())
    again = json.loads(json.dumps(config["experiments"][shared.main]))
    again["training"]["lr"] *= 2
    config["experiments"]["again"] = again
    config["run"] = ["again", *config["run"]]
    config["figures"]["main"] = shared.main
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / f"predictions/{shared.main}.csv", folder / "predictions/again.csv")
    results = Results.open(folder)
    assert {"again", shared.main} <= set(results.family())
    assert shared.main in fused(results)
    assert "again" not in fused(results)
    table = late_fusion(results, shared.baselines("response"))
    assert not table.duplicated(["experiment", "trained_on", "patient_id", "repeat", "fold"]).any()


@pytest.fixture(scope="module")
def clinical_tables(repository):
    path = repository / "benchmarks/clinical_tables.py"
    spec = importlib.util.spec_from_file_location("clinical_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ANCHORS = {
    ("Cambridge", "all", "lymphocytes"): 0.696,
    ("Cambridge", "TNBC", "lymphocytes"): 0.644,
    ("Cambridge", "HER2+", "lymphocytes"): 0.701,
    ("Cambridge", "all", "age, lower"): 0.623,
    ("Cambridge", "all", "grade"): 0.637,
    ("Cambridge", "all", "nodes, lower"): 0.623,
    ("Validation", "not HER2+", "lymphocytes"): 0.610,
    ("Validation", "HER2+", "lymphocytes"): 0.584,
    ("Ohio", "TNBC", "age, lower"): 0.633,
    ("Ohio", "TNBC", "lymphocytes"): 0.695,
    ("Ohio", "TNBC", "pathologists CD8-peritumoral (%)"): 0.719,
    ("Ohio", "TNBC", "pathologists CD8-intratumoral (%)"): 0.700,
    ("Ohio", "TNBC", "pathologists PD-L1-stroma (%)"): 0.696,
    ("Ohio", "TNBC", "IMPRESS stroma CD8_proportion, lower"): 0.801,
    ("Ohio", "HER2+", "IMPRESS lymphocytes CD163_ratio"): 0.786,
}


def test_single_measures_of_real_cohorts_are_the_published_tables(clinical_tables, shared):
    found = {tuple(row[:3]): row[3] for row in clinical_tables.single_measures(shared / "data/clinical")}
    assert found == {key: pytest.approx(value, abs=5.1e-4) for key, value in ANCHORS.items()}


@pytest.mark.extended
@pytest.mark.parametrize(("subtype", "patients", "positives"), [("TNBC", 109, 44), ("HER2+", 135, 66)])
def test_real_clinical_tables_go_the_way_of_the_command(
    clinical_tables, shared, tmp_path, subtype, patients, positives
):
    table = clinical_tables.read_tables(shared / "data/clinical")
    found = clinical_tables.run(table, subtype, tmp_path, repeats=1, bootstrap=100)
    assert (len(found.bags), found.bags["label"].sum()) == (patients, positives)
    for _, part in found.predictions.groupby("experiment"):
        build_endpoint().checked(part, "clinical")
    assert set(found.metrics["site"]) == {"Cambridge", "Ohio", "Validation", "training sites", "external sites"}
    names = {
        "clinical_local",
        "clinical_pooled",
        "clinical_federated",
        "annotation_pooled",
        "engine_pooled",
        "engine_fedavg",
    }
    assert names <= set(found.metrics["experiment"])
    assert {"sensitivity", "balanced_accuracy"} <= set(found.metrics["metric"])
    paired = found.comparisons[found.comparisons["primary"] == 1]
    same = paired[(paired["first"] == "clinical_federated") & (paired["second"] == "clinical_pooled")]
    assert same["difference"].abs().max() < 0.1  # averaging linear models of two sites gives nearly the pooled one
    engine = paired[(paired["second"] == "engine_pooled") & (paired["site"] == "training sites")]
    assert abs(engine["difference"].item()) < 0.06  # another fit of the same model: nearly the same ranks
    pooled = found.metrics[
        (found.metrics["experiment"] == "clinical_pooled") & (found.metrics["site"] == "training sites")
    ]
    assert 0.55 < pooled[pooled["metric"] == "auroc_within_sites"]["value"].item() < 0.8


@pytest.mark.parametrize("key", ["clinical", "annotation"])
def test_a_clinical_column_of_one_class_is_no_input(key, tmp_path):
    rows = [f"p{number},A,{number % 2},{40 + number},same" for number in range(12)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient_id,site,response,age,stage", *rows]) + "\n")
    config = Config.model_validate(
        {
            "cohort": "one",
            "slides": {"sheet": "none.csv", "patients": str(tmp_path / "patients.csv"), "roles": {"A": "train"}},
            "endpoints": {"response": {"folds": 2, "inner_folds": 2}},
            "metrics": {"clinical": ["age"]} | {key: "stage" if key == "annotation" else ["stage"]},
        }
    )
    with pytest.raises(
        MilError, match=f"metrics.{key}: all patients of .*patients.csv have the same stage; name others"
    ):
        clinical_cohort(config, "response")


def test_nothing_of_an_earlier_run_is_read_or_stays(tmp_path):
    encoders = {"colour": SimpleNamespace(name="colour"), "resnet": SimpleNamespace(name="resnet50")}
    config, files = SimpleNamespace(encoders=encoders), SimpleNamespace(has_features=lambda name: True)
    experiments = {"a": SimpleNamespace(encoder="resnet")}
    assert colour(SimpleNamespace(config=config, files=files, experiments=experiments), "response") is None
    (tmp_path / "left_out.csv").write_text("first\nloso\n")  # of an experiment that is no more
    _save({"metrics": pd.DataFrame({"value": [1]})}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("kind", "columns", "measure"),
    [
        ("survival", {"column": "months", "event": "dead"}, "c_index"),
        ("regression", {"column": "months"}, "spearman"),
        ("multiclass", {"column": "stage", "classes": ["T1", "T2", "T3"]}, "macro_auroc"),
    ],
)
def test_a_clinical_cohort_of_every_kind_is_scored_by_its_own_measure(kind, columns, measure, tmp_path):
    """Months are 100 less the age, the stage is the age's third: models of the age are right."""
    rows = [f"p{n},{'AB'[n % 2]},{100 - n},{n % 3 % 2},{n},T{1 + n // 20}" for n in range(60)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient_id,site,months,dead,age,stage", *rows]) + "\n")
    config = Config.model_validate(
        {
            "slides": {"patients": str(tmp_path / "patients.csv"), "roles": {"A": "train", "B": "external"}},
            "endpoints": {"outcome": {"kind": kind, "folds": 2, "inner_folds": 2, **columns}},
            "metrics": {"clinical": ["age"], "bootstrap": 100},
        }
    )
    results = clinical_cohort(config, "outcome")
    shown = results.metrics.query(
        "experiment == 'clinical_pooled' and split == 'external' and site == 'B' and primary == 1"
    )
    assert shown["metric"].tolist() == [measure]
    assert shown["value"].item() > 0.7
    assert measure in results.comparisons["metric"].iloc[0]


def test_a_clinical_cohort_is_a_command(clinical_tables, shared, tmp_path, monkeypatch):
    table = clinical_tables.read_tables(shared / "data/clinical")
    table = table[table["subtype"] == "TNBC"]
    write_table(clinical_tables.patient_table(table), tmp_path / "tnbc.csv")
    config = clinical_tables.config_of("TNBC", tmp_path, repeats=1, bootstrap=100)
    few = config.endpoints["response"].model_copy(update={"folds": 2, "inner_folds": 2})
    config = config.model_copy(update={"run": (), "endpoints": {"msi": EndpointSpec(column="msi"), "response": few}})
    (tmp_path / "tnbc.yaml").write_text(config.to_json())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["clinical", "tnbc.yaml"])
    assert result.exit_code == 0, result.output
    assert "nan" not in result.output
    assert "clinical msi: left out: no column 'msi'" in result.output
    folder = tmp_path / "results/tnbc/clinical/response"
    assert {path.name for path in folder.iterdir()} == {
        "bags.csv", "predictions.csv", "inner.csv", "metrics.csv", "comparisons.csv",
    }  # fmt: skip
    lines = (tmp_path / "tnbc.csv").read_text().splitlines()
    for change, said in {
        lambda text: text.replace(",Ohio,", ",Ohia,", 1): "site 'Ohia' has no role",
        lambda text: text.replace("site", "place", 1): "column 'site' is missing",
        lambda text: text + lines[1] + "\n": "has a row already",
        lambda text: (
            text + lines[1].lower() + "\n"
        ): "keep one row, or give two persons ids that differ by more than case",
        lambda text: text.replace(
            lines[1], lines[1].replace(",TNBC,1,", ",TNBC,x,").replace(",TNBC,0,", ",TNBC,x,")
        ): "'x'",
    }.items():
        (tmp_path / "tnbc.csv").write_text(change("\n".join(lines) + "\n"))
        failed = CliRunner().invoke(app, ["clinical", "tnbc.yaml"])
        assert said in str(failed.exception)


def test_intervals_keep_their_level_in_simulated_cohorts():
    """300 cohorts of 60; the full run of 2,000 is benchmarks/coverage.py. Bounds: 95 % +- 3 binomial deviations."""
    truth, runs, stream = 0.75, 300, rng(0, "coverage")
    hits = {"logit": 0, "bootstrap": 0}
    for _ in range(runs):
        labels = (np.arange(60) < 24).astype(int)
        scores = stream.normal(size=60) + labels * stats.norm.ppf(truth) * np.sqrt(2)
        _, low, high = delong.logit_interval(labels, scores)
        hits["logit"] += low <= truth <= high
        drawn = ranking.auroc(labels, scores, resamples(labels, 300, stream))
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits["bootstrap"] += low <= truth <= high
    assert 0.912 <= hits["logit"] / runs <= 0.988
    assert hits["bootstrap"] / runs >= 0.885  # the percentile bootstrap is a little short at this size, and said to be


def test_p_values_are_uniform_when_nothing_differs():
    stream, found = rng(0, "null"), []
    for _ in range(400):
        labels = (np.arange(80) < 32).astype(int)
        shared_part = stream.normal(size=80) + 0.8 * labels
        first, second = (shared_part + stream.normal(size=80) for _ in range(2))
        found.append(delong.paired(labels, first, second).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.repeated
def test_permuted_labels_teach_nothing():
    bags, features = cohort(20)
    inputs = pd.DataFrame({patient: tiles.mean(axis=0) for patient, tiles in features.items()}).T
    values = []
    runs = 10 * int(os.environ.get("REPEATS", "1"))
    for number in range(runs):
        table = permuted(inputs, bags, ENDPOINT, 0, number).predictions
        metrics = score(table, MetricsSpec(bootstrap=100))
        external = metrics[(metrics["site"] == "C") & (metrics["metric"] == "auroc") & (metrics["method"] == PRIMARY)]
        values.append(external["value"].item())
    low, high = np.mean(values) + np.array([-1, 1]) * 2.8 * np.std(values, ddof=1) / np.sqrt(runs)
    assert low < 0.5 < high


def test_permuted_labels_are_judged_by_pairs_of_one_site():
    stream = rng(0, "wins")
    scores, labels = stream.integers(0, 4, (3, 30)).astype(float), stream.integers(0, 2, (3, 30)).astype(float)
    sites = np.array(["A", "B", "C"])[stream.integers(0, 3, 30)]
    wins, pairs = ranking.pairs_within(scores, labels, sites)
    for number in range(3):
        score, label = scores[number], labels[number]
        both = (sites[:, None] == sites) & (label[:, None] > label)
        right = np.where(score[:, None] == score, 0.5, score[:, None] > score)
        assert (wins[number], pairs[number]) == ((right * both).sum(), both.sum())


def test_ridge_scores_are_those_of_scikit_learn_below_and_above_as_many_patients_as_features():
    stream = rng(0, "ridge")
    values, labels = stream.normal(size=(60, 20)), stream.integers(0, 2, (4, 60)).astype(float)
    for patients in (10, 40):
        train, judged = np.arange(60) < patients, np.arange(60) >= 40
        scaled = (values - values[train].mean(axis=0)) / values[train].std(axis=0)
        model = Ridge(alpha=20).fit(scaled[train], labels[:, train].T)
        expected = (model.predict(scaled[judged]) - model.intercept_).T
        assert _ridge(values, labels, train, judged) == pytest.approx(expected)


def test_leave_one_site_out_predicts_each_site_by_the_others():
    bags, features = cohort()
    three = bags.assign(role="train")
    three = deal_folds(three[["patient_id", "slides", "site", "role", "label"]], EndpointSpec(folds=3, inner_folds=2))
    inputs = pd.DataFrame({patient: tiles.mean(axis=0) for patient, tiles in features.items()}).T
    table = run_protocol("x", inputs, three, ENDPOINT, ("loso",)).predictions
    assert set(zip(table["trained_on"], table["site"], strict=True)) == {("A+B", "C"), ("A+C", "B"), ("B+C", "A")}
    assert set(table["split"]) == {"transfer"}
    assert table.groupby("patient_id").size().eq(1).all()
    metrics = score(table, MetricsSpec(bootstrap=100))
    arms = {("A+B", "C"), ("A+C", "B"), ("B+C", "A"), ("other sites", "training sites")}
    assert set(zip(metrics["trained_on"], metrics["site"], strict=True)) == arms
    assert run_protocol("x", inputs, bags, ENDPOINT, ("loso",)).predictions.empty  # two training sites: that is `local`
