"""Intervals: their level by simulation, what they say at the edge, and p values when nothing differs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from test_metrics import predictions_of

from mil.config import MetricsSpec
from mil.endpoints.curves import of_probabilities
from mil.metrics.comparison import compare
from mil.metrics.score import score
from mil.metrics.subgroups import subgroup_aurocs
from mil.rng import rng
from mil.statistics import calibration, decision, delong, held_out, intervals
from mil.statistics.arms import OTHER_SITES, Scope
from mil.statistics.bootstrap import point
from mil.statistics.differences import corrected
from mil.statistics.folds import corrected_resampled_t
from mil.statistics.measures import METRICS
from mil.statistics.survival import c_index_interval

SPEC = MetricsSpec(bootstrap=200)


def binormal(stream, patients, prevalence, auroc):
    """Labels and calibrated scores of patients drawn at random."""
    apart = stats.norm.ppf(auroc) * np.sqrt(2)
    labels = np.zeros(patients, int)
    while not 2 <= labels.sum() <= patients - 2:
        labels = (stream.random(patients) < prevalence).astype(int)
    logits = (
        apart * (stream.normal(size=patients) + apart * labels) - apart**2 / 2 + np.log(prevalence / (1 - prevalence))
    )
    return labels, 1 / (1 + np.exp(-logits))


@pytest.mark.slow
def test_intervals_hold_the_population_in_simulated_cohorts():
    """200 cohorts of 50; 2,000 of each size are benchmarks/coverage.py. Bounds: 95 % less 3.5 binomial deviations."""
    labels, scores = binormal(rng(0, "population"), 400_000, 0.3, 0.8)
    truth = {
        name: point(METRICS[name], labels, scores) for name in intervals.INTERVALS
    } | {"ece": 0.0, "net_benefit": point(lambda y, s, w: decision.net_benefit(y, s, w, 0.35), labels, scores)}  # fmt: skip
    stream, held = rng(0, "cohorts"), dict.fromkeys(truth, 0)
    for _ in range(200):
        labels, scores = binormal(stream, 50, 0.3, 0.8)
        found = {name: intervals.INTERVALS[name](labels, scores, 0.95) for name in intervals.INTERVALS}
        found["net_benefit"] = intervals.net_benefit(labels, scores, 0.35, 0.95)
        for name, bounds in found.items():
            held[name] += bounds.low <= truth[name] <= bounds.high or np.isnan(bounds.low)
    assert {name: count for name, count in held.items() if count / 200 < 0.896} == {}


def test_a_score_of_one_half_for_all_has_a_brier_score_that_is_known():
    """Every square is 0.25, whatever the labels; Wilson's interval for 20 patients would be 0.11 to 0.47."""
    found = intervals.INTERVALS["brier"](np.arange(20) % 2, np.full(20, 0.5), 0.95)
    assert (found.low, found.high, found.method) == (0.25, 0.25, "exact, every score is 0.5")
    apart = intervals.INTERVALS["brier"](np.arange(20) % 2, np.arange(20) % 2.0, 0.95)
    assert (apart.low, apart.method) == (0.0, "Wilson, for want of variance")


def test_calibrations_interval_is_the_logistic_regressions():
    """With many patients the sandwich is the information's: coefficient +- 1.96 errors of an unpenalised fit."""
    labels, scores = binormal(rng(0, "many"), 4000, 0.3, 0.8)
    x = calibration.logit(scores)[:, None]
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(x, labels)
    chance = fitted.predict_proba(x)[:, 1]
    design = np.column_stack([np.ones(len(x)), x])
    error = np.sqrt(np.linalg.inv((design * (chance * (1 - chance))[:, None]).T @ design)[1, 1])
    bounds = intervals.slope(labels, scores, 0.95)
    assert (bounds.high - bounds.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (bounds.high + bounds.low) / 2 == pytest.approx(fitted.coef_[0, 0], abs=1e-3)


def test_wilson_and_mover_by_hand():
    # 8 of 10: (0.8 + z^2/20 -+ z sqrt(0.16/10 + z^2/400)) / (1 + z^2/10), z = 1.96
    assert intervals.wilson(0.8, 10, 0.95) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals.votes(np.array([1.0] * 8 + [0.0] * 2), 0.95).low == pytest.approx(0.4902, abs=0.02)
    first, second = (0.8, intervals.Bounds(0.5, 0.9, "")), (0.6, intervals.Bounds(0.3, 0.8, ""))
    both = intervals.mean_of_two(first, second)
    assert (both.low, both.high) == pytest.approx((0.7 - np.hypot(0.3, 0.3) / 2, 0.7 + np.hypot(0.1, 0.2) / 2))


EDGES = {
    "perfect": (np.repeat([0, 1], 15), np.linspace(0.05, 0.95, 30)),
    "perfectly wrong": (np.repeat([1, 0], 15), np.linspace(0.05, 0.95, 30)),
    "all tied": (np.repeat([0, 1], 15), np.full(30, 0.4)),
    "all tied at one half": (np.repeat([0, 1], 15), np.full(30, 0.5)),
    "all tied at nought": (np.repeat([0, 1], 15), np.zeros(30)),
    "all equally far off": (np.repeat([0, 1], 15), np.repeat([0.2, 0.8], 15)),
    "certain and right": (np.repeat([0, 1], 15), np.repeat([0.0, 1.0], 15)),
    "certain and wrong": (np.repeat([1, 0], 15), np.repeat([0.0, 1.0], 15)),
    "one positive": (np.repeat([0, 1], [29, 1]), np.linspace(0.05, 0.95, 30)),
    "one of each": (np.array([0, 1]), np.array([0.2, 0.7])),
    "two values": (np.tile([0, 1], 15), np.repeat([0.3, 0.6], 15)),
}


@pytest.mark.parametrize("edge", EDGES)
def test_at_the_edge_every_row_has_a_width_or_a_reason(edge):
    labels, scores = EDGES[edge]
    table = pd.DataFrame(
        {
            "experiment": "x", "trained_on": "A", "repeat": 0, "fold": np.arange(len(labels)) % 2,
            "patient_id": [f"p{n}" for n in range(len(labels))], "site": "B", "role": "external", "split": "external",
            "label": labels, "score": scores,
        }
    )  # fmt: skip
    table = table.assign(fold=0)
    found = score(table, SPEC)
    assert {"auroc", "auprc", "brier", "ece", "calibration_slope", "prevalence"} <= set(found["metric"])
    blank = found["low"].isna() | found["high"].isna()
    wide = (found["high"] - found["low"] > 1e-6) | found["method"].str.startswith("exact")
    assert (blank | wide).all(), found[~(blank | wide)]
    stated = found["method"].str.startswith("not defined")
    assert (~blank | stated).all(), found[blank & ~stated]
    inside = (
        blank
        | ((found["low"] <= found["value"] + 1e-9) & (found["value"] <= found["high"] + 1e-9))
        | (found["metric"] == "ece")
    )
    assert inside.all(), found[~inside]
    bounded = found["metric"].isin(["auroc", "auprc", "brier", "ece", "prevalence"]) & ~blank
    assert found.loc[bounded, ["low", "high"]].stack().between(0, 1).all()
    methods = found.drop_duplicates("metric").set_index("metric")["method"]
    if len(np.unique(scores)) == 1:  # nothing to fit a slope to
        assert "all scores are equal" in methods["calibration_slope"]
    if ((scores == 0) & (labels == 1)).any():  # an infinite logit that no shift can mend
        assert methods["calibration_intercept"].startswith("not defined")
    if "perfect" in edge:
        assert methods["auroc"] == "Newcombe, no variance"


def test_c_index_at_the_edge():
    table = pd.DataFrame({"time": np.arange(1.0, 21), "event": True, "score": np.arange(20.0)})
    value, low, high = c_index_interval(table, 0.95)
    assert (value, high) == (1.0, 1.0)
    assert 0.7 < low < 0.95
    assert np.isnan(c_index_interval(table.assign(event=False), 0.95)).all()


def test_two_scores_that_rank_alike_may_differ_on_other_patients():
    labels = np.repeat([0, 1], [15, 10])
    perfect = delong.paired(labels, np.arange(25.0), np.arange(25.0) ** 2)
    assert (perfect.difference, perfect.p) == (0, 1)
    assert perfect.low < -0.05 < 0.05 < perfect.high
    sites = np.repeat("C", 25)
    other = delong.exchanged(labels, np.arange(25.0), np.arange(25.0) ** 2, sites, rng(0, "x"), 300)
    assert (other.low, other.high, other.p) == (perfect.low, perfect.high, 1)
    scores = rng(0, "same").random(25)
    same = delong.paired(labels, scores, scores**3)  # the same ranks
    assert (same.difference, same.p) == (0, 1)
    assert np.isnan([same.low, same.high]).all()  # nothing shows how they rank other patients
    opposite = delong.paired(labels, np.arange(25.0), -np.arange(25.0))
    assert opposite.difference == 1
    assert 0.5 < opposite.low < 1
    alone = delong.paired(np.repeat([0, 1], [9, 1]), rng(0, "a").random(10), rng(0, "b").random(10))
    assert alone.low < alone.difference < alone.high  # one positive has no variance
    assert np.isnan(corrected_resampled_t(np.full(5, 0.1), 0.25).p)  # the same in every fold has no error


def test_a_difference_of_correlations_keeps_to_possible_values():
    """Spearman's lies in -1 to 1, so differences lie in -2 to 2, corrected or not; the interval agrees with the test."""
    for values in ([-1.9, -0.2, -1.1], [-1.0, -1.2, -1.1], [0.1, 1.9, 1.2]):
        tested = corrected_resampled_t(np.array(values), 0.5, widest=2.0)
        for low, high in ((tested.low, tested.high), tested.bounds(0.999)):
            assert -2 <= low < tested.difference < high <= 2
        assert (tested.p < 0.05) == (not tested.low <= 0 <= tested.high)
        again = corrected([tested], 0.95)[0]
        assert again[:2] == pytest.approx((tested.low, tested.high))


def test_comparisons_name_their_family_and_one_primary_row_each():
    tables = {
        name: predictions_of(name, ["A+B"], quality) for name, quality in {"one": 1.0, "two": 2.0, "three": 1.5}.items()
    }
    table = compare(tables, SPEC)
    primary = table[table["primary"] == 1]
    assert len(primary) == 6  # three pairs, at training and at external sites
    outside = primary[primary["split"] == "external"]  # the models are given; fewer than 20 patients of a class
    assert outside["method"].str.startswith("permutation").all()
    assert (outside["metric"] == "auroc_within_sites").all()
    assert (outside["correction"] == "Holm, 6 comparisons of experiment on groups of sites").all()
    assert (primary[primary["split"] == "held_out"]["method"] == held_out.METHOD).all()
    assert not table.duplicated(["first", "first_trained_on", "second", "second_trained_on", "split", "site"]).any()
    held, external = (table[table["split"] == split] for split in ("held_out", "external"))
    assert (held["first_models"] == 2).all()  # one a repeat
    assert (external["first_models"] == 4).all()  # repeats x folds
    for _, pair in held.groupby(["first", "second", "site"]):
        assert pair["patients"].nunique() == 1


def test_rows_on_folds_belong_to_their_own_pair():
    """A pair that has nothing to compare gives no row, and takes none from the pair before it."""
    tables = {name: predictions_of(name, ["A+B"]) for name in ("one", "two")}
    for table in tables.values():
        table.loc[table["site"] == "B", "label"] = 1  # no pair of patients at B
    found = compare(tables, SPEC)
    assert set(found["site"]) == {"A", "training sites", "external sites"}
    assert not found.duplicated(["first", "second", "split", "site", "method"]).any()


def test_leaving_sites_out_is_one_arm_of_all():
    parts = []
    for left in "ABC":
        others = "+".join(site for site in "ABC" if site != left)
        one = predictions_of("x", [others])
        part = one[one["site"] == "A"].assign(site=left, role="train", split="transfer")
        parts.append(part.assign(patient_id=left + part["patient_id"]))
    table = pd.concat(parts)
    found = score(table, SPEC)
    rows = found[found["trained_on"] == OTHER_SITES]
    assert set(rows["site"]) == {"training sites"}
    assert rows[rows["primary"] == 1]["patients"].item() == 60
    compared = compare({"x": table, "y": table.assign(score=1 - table["score"])}, SPEC)
    assert OTHER_SITES in set(compared["first_trained_on"])
    assert {"B+C", "A+C", "A+B"} <= set(compared["first_trained_on"])


def test_subgroups_are_corrected_for_their_number():
    stream = rng(0, "subgroups")
    scores = pd.DataFrame(
        {
            "patient_id": [f"p{n}" for n in range(80)],
            "site": "A",
            "label": np.tile([0, 1], 40),
            "score": stream.random(80),
        }
    )
    patients = pd.DataFrame(
        {
            "patient_id": scores["patient_id"],
            "age": [str(30 + n % 40) for n in range(80)],
            "grade": stream.choice(["2", "3"], 80),
        }
    )
    table = subgroup_aurocs(scores, patients, ["age", "grade"]).groupby("variable").first()
    worst, best = table.loc[["age", "grade"], "p_differs"].max(), table.loc[["age", "grade"], "p_differs"].min()
    assert table.loc[["age", "grade"], "p_adjusted"].min() == pytest.approx(min(2 * best, 1))
    assert table.loc[["age", "grade"], "p_adjusted"].max() == pytest.approx(max(min(2 * best, 1), worst))


@pytest.mark.parametrize("scores", [[0.5] * 40, [0.9] * 8 + [0.6] * 8 + [0.3] * 4 + [0.9] * 4 + [0.6] * 8 + [0.3] * 8])
def test_the_band_of_a_roc_curve_is_around_it_also_with_ties(scores):
    """Equal scores were taken in the order of the patients' names, so that a band lay beside its curve."""
    labels = np.repeat([1, 0], 20)
    table = pd.DataFrame(
        {"patient_id": [f"p{n:02d}" for n in range(40)], "site": "a", "label": labels, "score": scores}
    )
    drawn = pd.concat(of_probabilities(Scope("m", "external", "a", table), SPEC))
    curve, band = (drawn[drawn["curve"] == name] for name in ("roc", "roc_band"))
    height = np.interp(band["x"], curve["x"], curve["y"])
    assert (band["low"] <= height + 1e-9).all()
    assert (height <= band["high"] + 1e-9).all()
