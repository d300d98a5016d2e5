"""Metrics beyond AUROC, against scikit-learn, lifelines and arithmetic by hand; folds; thresholds; agreement."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_rossi, load_waltons
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, cohen_kappa_score
from test_metrics import predictions_of

from mil.config import MetricsSpec
from mil.metrics.agreement import cohen_kappa, fleiss_kappa, pattern_table
from mil.metrics.score import primary, score
from mil.rng import rng
from mil.statistics import calibration, classification, delong, ranking
from mil.statistics.bootstrap import point
from mil.statistics.concordance import known_pairs
from mil.statistics.decision import net_benefit, treat_all
from mil.statistics.differences import bounded
from mil.statistics.folds import corrected_resampled_t, fold_aurocs
from mil.statistics.survival import c_index, kaplan_meier, log_rank
from mil.statistics.thresholds import choose_thresholds, vote, youden


@pytest.fixture
def weighted():
    stream = rng(0, "weighted")
    labels = stream.integers(0, 2, 150)
    scores = np.round(np.clip(0.3 + 0.25 * labels + stream.normal(0, 0.2, 150), 0.02, 0.98), 2)
    return labels, scores, stream.integers(0, 4, (3, 150)).astype(float)


def test_average_precision_and_brier_are_scikit_learns(weighted):
    labels, scores, weights = weighted
    expected = [average_precision_score(labels, scores, sample_weight=row) for row in weights]
    assert classification.auprc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)
    expected = [brier_score_loss(labels, scores, sample_weight=row) for row in weights]
    assert classification.brier(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_calibration_is_an_unpenalised_logistic_regression(weighted):
    labels, scores, weights = weighted
    x = calibration.logit(scores)[:, None]
    models = [
        LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, labels, sample_weight=row) for row in weights
    ]
    assert calibration.slope(labels, scores, weights) == pytest.approx([m.coef_[0, 0] for m in models], abs=1e-4)
    shift = calibration.intercept(labels, scores, weights)
    chance = 1 / (1 + np.exp(-(shift[:, None] + x[:, 0])))
    assert (weights * chance).sum(axis=1) == pytest.approx(weights @ labels, abs=1e-6)  # mean chance is the prevalence


def test_a_calibrated_score_has_slope_one_and_intercept_nought():
    stream = rng(0, "calibrated")
    scores = stream.uniform(0.05, 0.95, 20_000)
    labels = (stream.random(20_000) < scores).astype(int)
    assert point(calibration.slope, labels, scores) == pytest.approx(1, abs=0.05)
    assert point(calibration.intercept, labels, scores) == pytest.approx(0, abs=0.05)
    assert point(calibration.expected_calibration_error, labels, scores) < 0.02
    assert point(calibration.expected_calibration_error, labels, scores**3) > 0.1
    assert np.isnan(point(calibration.slope, np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])))  # separated


def test_net_benefit_by_hand():
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.3, 0.6, 0.2, 0.1])
    # at 0.5: one true and one false positive of five, odds 1
    assert net_benefit(labels, scores, np.ones((1, 5)), 0.5) == pytest.approx([0.0])
    assert net_benefit(labels, scores, np.ones((1, 5)), 0.25) == pytest.approx([2 / 5 - 1 / 5 / 3])
    assert treat_all(labels, 0.25) == pytest.approx(2 / 5 - 3 / 5 / 3)


def test_auroc_within_sites_ignores_what_sites_differ_in():
    labels = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    sites = np.repeat(["A", "B"], 4)
    scores = np.where(sites == "A", 0.9, 0.1)  # knows the site, nothing else
    assert delong.auroc(labels, scores) == 0.75
    assert ranking.auroc_within(labels, scores, np.ones((1, 8)), sites) == pytest.approx([0.5])
    assert delong.within(labels, scores, sites).auroc == pytest.approx([0.5])
    stream = rng(0, "within")
    labels, sites, scores = stream.integers(0, 2, 80), stream.integers(0, 3, 80), stream.random((2, 80))
    one = delong.within(labels, scores, sites)
    assert one.auroc == pytest.approx([ranking.auroc_within(labels, s, np.ones((1, 80)), sites)[0] for s in scores])
    assert delong.within(labels, scores, np.zeros(80)).covariance == pytest.approx(
        delong.placements(labels, scores).covariance
    )


def test_thresholds_come_from_inner_folds_alone():
    assert youden(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.8])) == pytest.approx(0.4)
    predictions = predictions_of("pooled", ["A+B"])
    inner = pd.DataFrame(
        {
            "trained_on": "A+B",
            "repeat": np.repeat([0, 1], 8),
            "fold": np.tile(np.repeat([0, 1], 4), 2),
            "patient_id": [f"x{n}" for n in range(16)],
            "label": [0, 0, 1, 1] * 4,
            "score": [0.1, 0.3, 0.5, 0.9] * 4,
        }
    )
    thresholds = choose_thresholds(inner)
    assert thresholds["threshold"].tolist() == pytest.approx([0.4] * 4)
    voted = vote(predictions, thresholds)
    assert (voted["vote"] == (voted["score"] >= 0.4)).all()
    at_it = predictions.assign(score=0.5).merge(thresholds, on=["trained_on", "repeat", "fold"])
    assert (vote(predictions.assign(score=at_it["threshold"].to_numpy()), thresholds)["vote"] == 1).all()
    table = score(predictions, MetricsSpec(bootstrap=200), None, inner)
    rows = table[(table["site"] == "A") & (table["split"] == "held_out")].set_index("metric")
    mine = voted[voted["site"] == "A"]
    assert rows.loc["sensitivity", "value"] == pytest.approx(mine[mine["label"] == 1]["vote"].mean())
    assert rows.loc["specificity", "value"] == pytest.approx(1 - mine[mine["label"] == 0]["vote"].mean())
    assert rows.loc["balanced_accuracy", "value"] == pytest.approx(
        rows.loc[["sensitivity", "specificity"], "value"].mean()
    )


def test_every_metric_has_an_interval_around_it():
    table = score(predictions_of("pooled", ["A+B"]), MetricsSpec(bootstrap=400))
    held = table[(table["site"] == "training sites") & (table["metric"] != "ece")]
    assert {"auroc", "auprc", "prevalence", "brier", "calibration_slope", "calibration_intercept"} < set(held["metric"])
    assert (held["low"] <= held["value"]).all()
    assert (held["value"] <= held["high"]).all()
    assert primary(table)["metric"].value_counts().to_dict() == {"auroc": 3, "auroc_within_sites": 2}


def test_a_model_that_knows_nothing_is_at_one_half_within_folds():
    """Constant scores a fold, low where the fold has few positives left out: laid together they rank below chance."""
    predictions = predictions_of("pooled", ["A+B"])
    inside = predictions[predictions["split"] == "held_out"].copy()
    rates = inside.groupby(["repeat", "fold"])["label"].transform("mean")
    inside["score"] = 0.5 - 0.1 * rates + 0.001 * inside["fold"]
    table = primary(score(inside, MetricsSpec(bootstrap=100)))
    assert table["value"].tolist() == pytest.approx([0.5] * len(table))


def test_fold_aurocs_are_each_folds_own():
    predictions = predictions_of("local", ["A", "B"])
    table = fold_aurocs(predictions)
    row = table[
        (table["trained_on"] == "A") & (table["site"] == "A") & (table["repeat"] == 1) & (table["fold"] == 0)
    ].iloc[0]
    mine = predictions[
        (predictions["trained_on"] == "A") & (predictions["site"] == "A")
        & (predictions["repeat"] == 1) & (predictions["fold"] == 0)
    ]  # fmt: skip
    assert row["auroc"] == pytest.approx(delong.auroc(mine["label"].to_numpy(), mine["score"].to_numpy()))
    assert {"own site", "ensemble"} <= set(table["trained_on"])


def test_the_corrected_resampled_t_test_by_hand():
    differences = np.array([0.02, 0.06, 0.04, 0.08, 0.05])
    tested = corrected_resampled_t(differences, 1 / 4)
    error = np.sqrt((1 / 5 + 1 / 4) * differences.var(ddof=1))
    assert tested.difference == pytest.approx(0.05)
    t = 2.7764451051977987  # 4 degrees of freedom
    assert (tested.low, tested.high) == pytest.approx(bounded(0.05, t * error))
    twice = corrected_resampled_t(np.tile(differences, 2), 1 / 4)  # repeats bring no degrees of freedom
    error = np.sqrt((1 / 10 + 1 / 4) * np.tile(differences, 2).var(ddof=1))
    assert (twice.low, twice.high) == pytest.approx(bounded(0.05, t * error))
    assert corrected_resampled_t(np.zeros(5), 0.25).p == 1


def test_c_index_and_survival_are_lifelines():
    table = load_rossi()
    arrays = table["week"].to_numpy(float), table["arrest"].to_numpy(bool), -table["prio"].to_numpy(float)
    ours = c_index(*arrays, np.ones((1, len(table))))[0]
    assert ours == pytest.approx(concordance_index(table["week"], -table["prio"], table["arrest"]), abs=1e-12)
    mice = load_waltons().rename(columns={"T": "time", "E": "event"})
    mice["event"] = mice["event"].astype(bool)
    first, second = (part for _, part in mice.groupby("group"))
    expected = logrank_test(first["time"], second["time"], first["event"], second["event"]).p_value
    assert log_rank(mice) == pytest.approx(expected)
    curve = kaplan_meier(mice, 0.95)
    assert curve.groupby("group")["survival"].min().between(0, 0.2).all()


def test_a_c_index_in_blocks_of_patients_counts_every_pair_once(monkeypatch):
    stream = rng(0, "blocks")
    times, scores = stream.integers(1, 9, (2, 40)).astype(float)
    events, weights = stream.random(40) < 0.5, stream.integers(0, 3, (5, 40)).astype(float)
    labels = np.stack([times, events], axis=1)
    whole, pairs = c_index(times, events, scores, weights), known_pairs(labels, weights)
    by_hand = [
        sum(
            w[i] * w[j] * (events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])))
            for i, j in permutations(range(40), 2)
        )
        for w in weights
    ]
    assert pairs.tolist() == by_hand
    monkeypatch.setattr("mil.statistics.concordance.AT_ONCE", 7)
    assert (c_index(times, events, scores, weights).tolist(), known_pairs(labels, weights).tolist()) == (
        whole.tolist(),
        by_hand,
    )


def test_kappas_by_hand_and_by_scikit_learn():
    first, second = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert np.isnan(cohen_kappa(np.zeros(3), np.zeros(3)))
    # Fleiss 1971 by hand: three subjects, three raters; agreement (1, 1/3, 1), expected 5/9^2...
    ratings = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1]])
    expected = (4 / 9) ** 2 + (5 / 9) ** 2
    assert fleiss_kappa(ratings) == pytest.approx(((1 + 1 / 3 + 1) / 3 - expected) / (1 - expected))


def test_patterns_are_compared_by_fishers_test():
    reviews = pd.DataFrame(
        {"kind": ["top"] * 8 + ["bottom"] * 8, "lymphocytes": [1] * 7 + [0] + [1] + [0] * 7, "fat": [1, 0] * 8}
    )
    table = pattern_table(reviews, ["lymphocytes", "fat"]).set_index("pattern")
    assert table.loc["lymphocytes", "p"] == pytest.approx(0.010100, abs=1e-5)  # hypergeometric, two-sided
    assert table.loc["fat", "p"] == 1
    assert table.loc["lymphocytes", "p_adjusted"] == pytest.approx(2 * table.loc["lymphocytes", "p"])
    narrow = pattern_table(reviews, ["lymphocytes"], confidence=0.8)
    assert narrow["low"][0] > table.loc["lymphocytes", "low"]
