"""Scores of patients -> the curves that figures draw, as points with the columns of `mil.schemas.CURVES`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.statistics import intervals
from mil.statistics.arms import GROUPS, Scope
from mil.statistics.bootstrap import bootstrap_weights
from mil.statistics.calibration import BINS, bin_of, logit, recalibrated
from mil.statistics.decision import net_benefit, treat_all
from mil.statistics.delong import both_classes
from mil.statistics.ranking import by_score, precision_recall_curve, roc_curve
from mil.statistics.survival import kaplan_meier

if TYPE_CHECKING:
    from mil.config import MetricsSpec

GRID = np.linspace(0, 1, 101)
BAND_RESAMPLES = 500
THRESHOLDS = np.round(np.arange(0.05, 0.701, 0.025), 3)
PATIENTS_A_BIN, FEWEST_BINS = 10, 3
"""With too few patients for these, no bin is made, only the logistic recalibration."""


def is_drawn(scope: Scope) -> bool:
    """Whether figures show curves of the scope: of one site, by models that no patient of it trained."""
    return scope.site not in GROUPS and scope.split != "transfer"


def of_probabilities(scope: Scope, spec: "MetricsSpec") -> Iterator[pd.DataFrame]:
    """ROC curve with a bootstrap band, precision and recall, calibration, net benefit; none without both classes."""
    labels, scores = scope.labels, scope.scores
    if not is_drawn(scope) or not both_classes(labels):
        return
    yield points("roc", *roc_curve(labels, scores))
    low, high = _band(scope, spec)
    yield points("roc_band", GRID, low=low, high=high)
    yield points("precision_recall", *precision_recall_curve(labels, scores))
    yield _bins(labels, scores, spec.confidence)
    yield _recalibration(labels, scores)
    everyone = np.ones((1, len(labels)))
    benefit = np.array([net_benefit(labels, scores, everyone, threshold)[0] for threshold in THRESHOLDS])
    bounds = [intervals.net_benefit(labels, scores, threshold, spec.confidence) for threshold in THRESHOLDS]
    low, high = np.array([(interval.low, interval.high) for interval in bounds]).T
    yield points("net_benefit", THRESHOLDS, benefit, low=low, high=high)
    yield points("net_benefit_of_all", THRESHOLDS, np.array([treat_all(labels, threshold) for threshold in THRESHOLDS]))


def of_classes(scope: Scope, shares: np.ndarray, classes: Sequence[str]) -> Iterator[pd.DataFrame]:
    """ROC curve of every class against the rest; none of a class without a patient, or with all of them. Patients by likeliest class."""
    if not is_drawn(scope):
        return
    places = np.arange(len(classes))
    for number, name in enumerate(classes):
        members = (scope.labels == number).astype(int)
        if both_classes(members):
            yield points("roc", *roc_curve(members, shares[:, number])).assign(group=name)
        counts = np.bincount(shares[members == 1].argmax(axis=1), minlength=len(classes))
        yield points("confusion", places, counts / max(members.sum(), 1)).assign(group=name, patients=counts)


def of_risks(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Kaplan-Meier curves of patients at lower (group 0) and at higher risk (1), from `risk_groups`."""
    curves = kaplan_meier(table.assign(group=table["higher"]).sort_values("higher"), confidence)
    named = curves.rename(columns={"time": "x", "survival": "y", "at_risk": "patients"})
    return named.assign(curve="survival")


def points(curve: str, x: np.ndarray, y: np.ndarray | None = None, **bounds: np.ndarray) -> pd.DataFrame:
    """Points of a curve of that name, with `low` and `high` where they are given."""
    return pd.DataFrame({"curve": curve, "x": x, **({} if y is None else {"y": y}), **bounds})


def _band(scope: Scope, spec: "MetricsSpec") -> np.ndarray:
    """Pointwise percentile band (2, points) of sensitivity at each 1 - specificity of `GRID`, by a bootstrap over patients."""
    weights = bootstrap_weights(scope.table, spec)[:BAND_RESAMPLES]
    positive, negative = by_score(scope.labels, scope.scores, weights)
    true_rate = np.cumsum(positive, axis=1) / positive.sum(axis=1, keepdims=True)
    false_rate = np.cumsum(negative, axis=1) / negative.sum(axis=1, keepdims=True)
    curves = np.stack([np.interp(GRID, np.r_[0, x], np.r_[0, y]) for x, y in zip(false_rate, true_rate, strict=True)])
    tail = (1 - spec.confidence) / 2
    return np.quantile(curves, [tail, 1 - tail], axis=0)


def _bins(labels: np.ndarray, scores: np.ndarray, confidence: float) -> pd.DataFrame:
    """Mean score (x) and share of positives (y) in each bin of equally many patients, with Wilson's interval; no row with too few patients."""
    number_of_bins = min(BINS, len(labels) // PATIENTS_A_BIN)
    rows, bins = [], bin_of(scores, max(number_of_bins, 1))
    for number in np.unique(bins) if number_of_bins >= FEWEST_BINS else ():
        chosen = bins == number
        share = int(labels[chosen].sum()) / int(chosen.sum())
        low, high = intervals.wilson(share, int(chosen.sum()), confidence)
        rows.append(("calibration", float(scores[chosen].mean()), share, low, high, int(chosen.sum())))
    return pd.DataFrame(rows, columns=["curve", "x", "y", "low", "high", "patients"])


def _recalibration(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Chance of a positive by the logistic regression of the label on the score's logit, from the lowest to the highest score."""
    intercept, slope = recalibrated(labels, scores, np.ones((1, len(labels))))[0]
    at = np.linspace(scores.min(), scores.max(), 60)
    table = points("recalibration", at, 1 / (1 + np.exp(-(intercept + slope * logit(at)))))
    return table[np.isfinite(table["y"])]
