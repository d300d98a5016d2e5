"""Yes or no: AUROC by DeLong, and what a probability is further asked for; decisions at thresholds of the inner folds."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mil.config import MetricsSpec
from mil.endpoints.kinds.kind import KINDS, PAIRED_BOOTSTRAP, Kind, Measure, Pair, scope_columns
from mil.endpoints.kinds.rows import BOOTSTRAP
from mil.statistics import calibration, classification, decision, delong, intervals, ranking
from mil.statistics.arms import ENSEMBLE, GROUPS, Scope, scopes
from mil.statistics.bootstrap import Metric, point
from mil.statistics.folds import KEYS, corrected_resampled_t, fold_aurocs, within_folds
from mil.statistics.intervals import INTERVALS
from mil.statistics.measures import METRICS
from mil.statistics.thresholds import choose_thresholds, vote

# DeLong's plain normal interval (the one pROC gives) covers 91-94 % with 40-60 patients, on the logit scale 95-96 %
# (benchmarks/coverage.py). Both are in the table; figures and the report show this one.
PRIMARY = "DeLong, logit scale"
DECISIONS = ("sensitivity", "specificity", "balanced_accuracy")
REGISTERED = (ranking, classification, calibration)  # importing them fills METRICS


@KINDS.register("binary")
class Binary(Kind):
    """Labels are 0 or 1, the score a probability."""

    name = "binary"
    primary = Measure("auroc", "AUROC", ranking.auroc, chance=0.5)
    method = PRIMARY
    paired = "DeLong, paired"
    better = "ranks positive patients above negative ones better than chance would"
    worse = "ranks positive patients below negative ones, worse than chance would"
    counts = "positive"
    watched = "AUROC"
    how = "DeLong, logit scale"

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """0 or 1, a probability."""
        return {"label": table["label"].isin([0, 1]), "score": table["score"].between(0, 1)}

    def positives(self, table: pd.DataFrame) -> int | None:
        """Those who are 1."""
        return int(table["label"].sum())

    def undefined(self, table: pd.DataFrame) -> str:
        """Both classes are needed."""
        return "" if delong.both_classes(table["label"].to_numpy()) else "patients of one class only"

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """AUROC over pairs of the same group."""
        return ranking.auroc_within(labels, scores, weights, groups)

    def interval_within(self, table: pd.DataFrame, spec: MetricsSpec) -> tuple[float, float, float]:
        """DeLong's, on the logit scale."""
        labels, scores, sites = (table[name].to_numpy() for name in ("label", "score", "site"))
        return delong.within_interval(labels, scores, sites, spec.confidence)

    def rows(self, scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
        """Every metric of one scope."""
        labels, scores = scope.labels, scope.scores
        if not delong.both_classes(labels):
            yield _row("auroc", np.nan, np.nan, np.nan, "not defined: patients of one class only")
            return
        yield _row("auroc", *delong.logit_interval(labels, scores, spec.confidence), PRIMARY)
        yield _row("auroc", *delong.interval(labels, scores, spec.confidence), "DeLong")
        yield _row("prevalence", *wilson_interval(int(labels.sum()), len(labels), spec.confidence), "Wilson")
        weights = self.weights(scope.table, spec)
        yield _resampled("auroc", ranking.auroc, scope, weights, spec)
        for name in INTERVALS:
            bounds = INTERVALS[name](labels, scores, spec.confidence)
            yield _row(name, point(METRICS[name], labels, scores), bounds.low, bounds.high, bounds.method)
        for threshold in spec.decision_thresholds:
            value = point(partial(decision.net_benefit, threshold=threshold), labels, scores)
            bounds = intervals.net_benefit(labels, scores, threshold, spec.confidence)
            yield _row(f"net_benefit_{threshold:g}", value, bounds.low, bounds.high, bounds.method)
        sites = scope.table["site"].to_numpy()
        if scope.site in GROUPS and any(delong.both_classes(labels[sites == site]) for site in np.unique(sites)):
            yield _row("auroc_within_sites", *delong.within_interval(labels, scores, sites, spec.confidence), PRIMARY)
            within = partial(ranking.auroc_within, groups=sites)
            yield _resampled("auroc_within_sites", within, scope, weights, spec)

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: MetricsSpec
    ) -> Iterator[dict[str, Any]]:
        """Within folds, over folds and, with inner predictions, decisions."""
        for row in within_folds(predictions, spec.confidence).to_dict("records"):
            named = {"metric": "auroc_within_folds", "method": "DeLong, placements within folds"}
            yield {**{str(key): value for key, value in row.items()}, "models": 1, **named}
        yield from _over_folds(predictions, spec)
        if inner is not None:
            yield from _decisions(self, predictions, inner, spec)

    def pairs_tested(self, first: pd.DataFrame, second: pd.DataFrame, spec: MetricsSpec) -> Iterator[Pair]:
        """DeLong's test, and the paired bootstrap."""
        labels, sites = first["label"].to_numpy(), first["site"].to_numpy()
        if not any(delong.both_classes(labels[sites == site]) for site in np.unique(sites)):
            return
        scores = [table["score"].to_numpy() for table in (first, second)]
        tested = delong.paired(labels, *scores, confidence=spec.confidence, strata=sites)
        one, other = delong.within(labels, np.stack(scores), sites).auroc
        yield Pair((one, other), tested, self.paired)
        weights = self.weights(first, spec)
        variance = float(np.nanvar(np.subtract(*(self.within(labels, score, weights, sites) for score in scores))))
        again = delong.difference_of(tested.difference, variance, spec.confidence) if variance > 1e-12 else tested
        yield Pair((one, other), again, PAIRED_BOOTSTRAP)


def _over_folds(predictions: pd.DataFrame, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
    """Mean AUROC of the folds, with an interval that allows for what their training sets have in common."""
    inside = predictions[predictions["split"] != "external"]
    number = inside["fold"].nunique()
    if number < 2:
        return
    for key, folds in fold_aurocs(inside).groupby(list(KEYS), sort=False):
        found = corrected_resampled_t(folds["auroc"].to_numpy(), 1 / (number - 1), spec.confidence)
        low, high = (float(np.clip(bound, 0, 1)) for bound in (found.low, found.high))
        row = _row("auroc_mean_of_folds", found.difference, low, high, f"corrected resampled t, {len(folds)} folds")
        if not low < high:
            row |= {"low": np.nan, "high": np.nan, "method": "not defined: folds do not vary, or one only"}
        sizes = folds.groupby("repeat")[["patients", "positives"]].sum().max()
        yield {**dict(zip(KEYS, key, strict=True)), **sizes.astype(int).to_dict(), "models": 1, **row}


def _decisions(
    kind: Kind, predictions: pd.DataFrame, inner: pd.DataFrame, spec: MetricsSpec
) -> Iterator[dict[str, Any]]:
    """Rows of the metrics that need a decision; the ensemble has no threshold of its own."""
    voted = vote(predictions, choose_thresholds(inner))
    if voted.empty:
        return
    for scope in scopes(voted.assign(score=voted["vote"])):
        if scope.trained_on == ENSEMBLE or not delong.both_classes(scope.labels):
            continue
        votes = [scope.scores[scope.labels == label] for label in (1, 0)]
        bounds = [intervals.votes(own, spec.confidence) for own in (votes[0], 1 - votes[1])]
        values = float(votes[0].mean()), 1 - float(votes[1].mean())
        both = intervals.mean_of_two(*zip(values, bounds, strict=True))
        for name, value, found in zip(DECISIONS, (*values, sum(values) / 2), (*bounds, both), strict=True):
            row = _row(name, value, found.low, found.high, f"{found.method}; threshold on inner folds")
            yield {**scope_columns(kind, scope), **row}


def _resampled(name: str, metric: Metric, scope: Scope, weights: np.ndarray, spec: MetricsSpec) -> dict[str, Any]:
    bounds = bootstrap_interval(metric, scope.labels, scope.scores, weights, spec.confidence)
    return _row(name, point(metric, scope.labels, scope.scores), bounds.low, bounds.high, bounds.method)


def bootstrap_interval(
    metric: Metric, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, confidence: float
) -> intervals.Bounds:
    """Of an AUROC, from the deviation of its resamples on the logit scale: their percentiles are short of their level."""
    value, deviation = point(metric, labels, scores), float(np.nanstd(metric(labels, scores, weights)))
    if 0 < value < 1 and deviation > 0:
        return intervals.on_logit_scale(value, deviation, len(labels) - 1, confidence, len(labels), BOOTSTRAP)
    low, high = delong.newcombe_interval(value, int(labels.sum()), int(np.sum(labels == 0)), confidence)
    return intervals.Bounds(low, high, f"{BOOTSTRAP} (Newcombe's, for want of variance)")


def wilson_interval(count: int, total: int, confidence: float) -> tuple[float, float, float]:
    """A share with Wilson's score interval (1927)."""
    return count / total, *intervals.wilson(count / total, total, confidence)


def _row(metric: str, value: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}
