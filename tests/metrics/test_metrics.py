"""AUROC, its intervals and comparisons, against pROC's published values, scikit-learn, and arithmetic by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mil.config import ExperimentSpec, MetricsSpec
from mil.endpoints import build_endpoint
from mil.endpoints.binary import PRIMARY
from mil.errors import MilError
from mil.metrics.comparison import compare
from mil.metrics.score import score
from mil.rng import rng
from mil.statistics import delong, ranking
from mil.statistics.arms import ENSEMBLE, OWN_SITE, patient_scores, scopes
from mil.statistics.bootstrap import point, resamples, strata_of
from mil.statistics.differences import bounded
from mil.statistics.multiplicity import benjamini_hochberg, holm

SPEC = MetricsSpec(bootstrap=300)


@pytest.fixture(scope="module")
def haemorrhage(shared):
    """Turck's aSAH data with pROC's results on it."""
    folder = shared / "data/reference/delong_aSAH"
    table = pd.read_csv(folder / "aSAH.csv")
    return (
        table,
        (table["outcome"] == "Poor").to_numpy().astype(int),
        json.loads((folder / "delong_reference.json").read_text()),
    )


def test_delong_is_procs_delong(haemorrhage):
    table, labels, known = haemorrhage
    for marker, variance in known["delong_var"].items():
        placed = delong.placements(labels, table[marker].to_numpy())
        assert placed.covariance[0, 0] == pytest.approx(variance, abs=1e-9)
    assert delong.auroc(labels, table["ndka"].to_numpy()) == pytest.approx(known["auc"]["ndka"], abs=1e-9)
    for marker in ("wfns", "s100b"):  # the source gives these to seven digits
        assert delong.auroc(labels, table[marker].to_numpy()) == pytest.approx(known["auc"][marker], abs=5e-8)
    _, low, high = delong.interval(labels, table["ndka"].to_numpy())
    assert [low, high] == pytest.approx(known["ci95_delong"]["ndka"], abs=1e-9)
    _, low, high = delong.interval(labels, table["s100b"].to_numpy())
    assert [low, high] == pytest.approx(known["ci95_delong"]["s100b"], abs=5e-8)


def test_delongs_tests_are_procs(haemorrhage):
    table, labels, known = haemorrhage
    for pair, expected in known["paired_test"].items():
        first, second = pair.split("_vs_")
        tested = delong.paired(labels, table[first].to_numpy(), table[second].to_numpy())
        assert (tested.z, tested.p) == pytest.approx((expected["Z"], expected["p"]), abs=1e-9)
        reach = np.diff(expected["diff_ci95"])[0] / 2  # pROC's interval is symmetric, ours keeps within (-1, 1)
        assert bounded(tested.difference, reach) == pytest.approx((tested.low, tested.high), abs=1e-9)
        assert [tested.low, tested.high] == pytest.approx(expected["diff_ci95"], abs=0.011)


def test_auroc_of_women_is_procs(haemorrhage):
    table, labels, known = haemorrhage
    women = (table["gender"] == "Female").to_numpy()
    low, value, high = known["ndka_female_only_ci"]
    assert delong.interval(labels[women], table["ndka"].to_numpy()[women]) == pytest.approx(
        (value, low, high), abs=1e-9
    )


def test_auroc_by_hand_and_by_scikit_learn():
    labels, scores = np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.4, 0.1])
    # pairs: 0.9>0.4, 0.9>0.1, 0.4=0.4 (one half), 0.4>0.1
    assert delong.auroc(labels, scores) == point(ranking.auroc, labels, scores) == 3.5 / 4
    stream = rng(0, "auroc")
    labels, scores = stream.integers(0, 2, 200), stream.integers(0, 20, 200) / 20
    assert delong.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    weights = stream.integers(0, 4, (3, 200)).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    assert ranking.auroc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_perfect_separation_still_has_an_interval():
    labels, scores = np.repeat([0, 1], [15, 10]), np.arange(25) / 25
    value, low, high = delong.logit_interval(labels, scores)
    assert (value, high) == (1.0, 1.0)
    assert 0.75 < low < 0.95
    assert delong.newcombe_interval(0.5, 10, 15) == pytest.approx(
        tuple(1 - bound for bound in reversed(delong.newcombe_interval(0.5, 15, 10))), abs=1e-9
    )


def test_one_class_and_blank_scores_are_said():
    with pytest.raises(MilError, match="both classes"):
        delong.auroc(np.ones(4), np.arange(4.0))
    with pytest.raises(MilError, match="finite"):
        delong.auroc(np.array([0, 1]), np.array([0.1, np.nan]))


def test_resamples_keep_the_numbers_of_each_stratum():
    strata = strata_of(np.array(["A", "A", "A", "B", "B"]), np.array([0, 0, 1, 1, 1]))
    weights = resamples(strata, 50, rng(0, "draw"))
    for stratum in np.unique(strata):
        assert (weights[:, strata == stratum].sum(axis=1) == (strata == stratum).sum()).all()


def test_holm_and_benjamini_hochberg_by_hand():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    assert holm(p) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert benjamini_hochberg(p) == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)


def predictions_of(name: str, trained_on: list[str], quality: float = 1.2) -> pd.DataFrame:
    """Two training sites, one external, two repeats of two folds; scores from a seeded generator."""
    rows = []
    for site, role in {"A": "train", "B": "train", "C": "external"}.items():
        for number in range(20):
            label, patient = number % 2, f"{site}{number}"
            for on in trained_on:
                for repeat in range(2):
                    folds = [(number // 2) % 2] if role == "train" else [0, 1]
                    for fold in folds:
                        raw = quality * label + rng(0, name, on, repeat, fold, patient).normal()
                        split = (
                            "external" if role == "external" else "held_out" if site in on.split("+") else "transfer"
                        )
                        rows.append((name, on, repeat, fold, patient, site, role, split, label, 1 / (1 + np.exp(-raw))))
    columns = ["experiment", "trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score"]
    return pd.DataFrame(rows, columns=columns)


def test_a_patients_score_is_the_mean_over_models_that_never_saw_them():
    table = predictions_of("local", ["A", "B"])
    scores = patient_scores(table)
    mine = table[(table["patient_id"] == "A3") & (table["trained_on"] == "A")]
    own = scores[(scores["patient_id"] == "A3") & (scores["trained_on"] == OWN_SITE)]
    assert own["score"].item() == pytest.approx(mine["score"].mean())
    ensemble = scores[(scores["patient_id"] == "C0") & (scores["trained_on"] == ENSEMBLE)]
    assert ensemble["score"].item() == pytest.approx(table[table["patient_id"] == "C0"]["score"].mean())
    sites = {(scope.trained_on, scope.split): scope.site for scope in scopes(table)}
    assert ("A", "transfer") in sites
    assert sites[OWN_SITE, "held_out"] == "training sites"


def test_the_score_table_names_every_arm_site_and_method():
    table = score(predictions_of("pooled", ["A+B"]), SPEC)
    assert set(table["site"]) == {"A", "B", "C", "training sites", "external sites"}
    primary = table[(table["metric"] == "auroc") & (table["method"] == PRIMARY)]
    assert (primary["low"] < primary["value"]).all()
    assert (primary["value"] < primary["high"]).all()
    experiment = ExperimentSpec.model_validate({"encoder": "e", "endpoint": "r", "model": "mean", "strategy": "pooled"})
    assert score(predictions_of("pooled", ["A+B"]), SPEC, experiment)["strategy"].unique().tolist() == ["pooled"]


def test_a_site_with_one_class_is_a_row_that_says_so():
    table = predictions_of("pooled", ["A+B"])
    table.loc[table["site"] == "C", "label"] = 1
    found = score(table, SPEC)
    row = found[(found["site"] == "C") & (found["metric"] == "auroc")]
    assert row["value"].isna().all()
    assert row["method"].str.contains("one class").all()
    outside = found[(found["site"] == "external sites") & (found["metric"] == "auroc_within_sites")]
    assert outside["method"].tolist() == ["not defined: patients of one class only"]
    table.loc[table["role"] == "train", "label"] = (table["site"] == "A").astype(int)
    found = score(table, SPEC)
    inside = found[(found["site"] == "training sites") & (found["metric"] == "auroc_within_sites")]
    assert inside["method"].tolist() == ["not defined: no site has patients of both classes"]
    assert inside["value"].isna().all()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("score", 1.5, "score '1.5' is refused"),
        ("score", np.nan, "is refused"),
        ("label", 2, "label"),
        ("split", "test", "split 'test'"),
        ("trained_on", None, "trained_on 'None' is refused"),
        ("role", "", "role '' is refused"),
        ("site", "B", "two values of site"),
    ],
)
def test_predictions_that_cannot_be_are_refused(column, value, said):
    table = predictions_of("pooled", ["A+B"]).astype({"score": float})
    table.loc[0, column] = value
    with pytest.raises(MilError, match=said):
        build_endpoint().checked(table, "predictions of pooled")


def test_a_table_without_a_row_or_with_a_blank_name_is_refused():
    """A group of patients whose experiment or site is blank would be left out of every number in silence."""
    table = predictions_of("pooled", ["A+B"])
    with pytest.raises(MilError, match="no row"):
        score(table.head(0), SPEC)
    with pytest.raises(MilError, match="experiment 'nan' is refused"):
        score(table.assign(experiment=table["experiment"].where(table["site"] != "B")), SPEC)


def test_a_column_of_somebody_s_own_changes_nothing():
    table = predictions_of("pooled", ["A+B"])
    pd.testing.assert_frame_equal(score(table.assign(score_remark="high"), SPEC), score(table, SPEC))


def test_a_patient_in_two_folds_is_found():
    table = predictions_of("pooled", ["A+B"])
    again = table[table["split"] == "held_out"].head(1)
    again = again.assign(fold=1 - again["fold"])
    with pytest.raises(MilError, match="stand in two folds"):
        build_endpoint().checked(pd.concat([table, again]), "predictions of pooled")


@pytest.mark.parametrize("split", ["held_out", "external"])
def test_two_rows_of_one_model_and_patient_are_refused(split):
    """Their mean would stand for the model's score."""
    table = predictions_of("pooled", ["A+B"])
    again = table[table["split"] == split].head(1).assign(score=0.01)
    with pytest.raises(MilError, match="has two rows of repeat 0, fold"):
        score(pd.concat([table, again]), SPEC)


def stanza(strategy: str, model: str = "mean") -> ExperimentSpec:
    return ExperimentSpec.model_validate({"encoder": "e", "endpoint": "r", "model": model, "strategy": strategy})


def test_comparisons_change_one_thing_and_are_paired():
    tables = {
        "local": predictions_of("local", ["A", "B"], 1.0),
        "fedavg": predictions_of("fedavg", ["A+B"], 2.0),
        "attention": predictions_of("attention", ["A+B"], 2.0),
    }
    experiments = {
        "local": stanza("local"),
        "fedavg": stanza("fedavg"),
        "attention": stanza("fedavg", "gated_attention"),
    }
    table = compare(tables, SPEC, experiments)
    assert set(zip(table["factor"], table["first"], table["second"], strict=True)) == {
        ("strategy", "fedavg", "local"),
        ("model", "attention", "fedavg"),
    }
    row = table[
        (table["factor"] == "strategy") & (table["site"] == "training sites")
        & (table["second_trained_on"] == OWN_SITE)
    ].iloc[0]  # fmt: skip
    assert row["difference"] == pytest.approx(row["first_value"] - row["second_value"])
    assert (table["p_adjusted"] >= table["p"] - 1e-12).all()
    assert table["correction"].str.startswith("Holm, ").all()
    turned = compare(dict(reversed(tables.items())), SPEC, experiments)
    strategies = [one[one["factor"] == "strategy"]["difference"].sort_values().to_numpy() for one in (table, turned)]
    assert strategies[0] == pytest.approx(strategies[1])


def test_equal_experiments_do_not_differ():
    tables = {name: predictions_of("same", ["A+B"]).assign(experiment=name) for name in ("one", "two")}
    table = compare(tables, SPEC)
    assert (table["difference"] == 0).all()
    assert (table["p"] == 1).all()
