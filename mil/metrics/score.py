"""Predictions -> metrics with intervals, by site and arm, as one tidy table."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.metrics import calibration, classification, decision, delong, intervals, ranking
from mil.metrics.arms import ENSEMBLE, EXTERNAL_SITES, TRAINING_SITES, Scope, check_predictions, scopes
from mil.metrics.bootstrap import Metric, point, resamples, strata_of
from mil.metrics.folds import KEYS, corrected_resampled_t, fold_aurocs, within_folds
from mil.metrics.intervals import INTERVALS
from mil.metrics.registry import METRICS
from mil.metrics.thresholds import choose_thresholds, vote
from mil.rng import rng
from mil.tables import read_table

# DeLong's plain normal interval (the one pROC gives) covers 91-94 % with 40-60 patients, on the logit scale 95-96 %
# (benchmarks/coverage.py). Both are in the table; figures and the report show this one.
PRIMARY = "DeLong, logit scale"
GROUPS = (TRAINING_SITES, EXTERNAL_SITES)
BOOTSTRAP = "patient bootstrap"
DECISIONS = ("sensitivity", "specificity", "balanced_accuracy")
REGISTERED = (ranking, classification, calibration)  # importing them fills METRICS
COLUMNS = (
    "trained_on",
    "split",
    "site",
    "patients",
    "positives",
    "models",
    "metric",
    "value",
    "low",
    "high",
    "method",
    "primary",
)


def score(
    predictions: pd.DataFrame,
    spec: MetricsSpec,
    experiment: ExperimentSpec | None = None,
    inner: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The metrics of one experiment's predictions: a row a (trained_on, split, site, metric, interval method).

    `site` is a site, "training sites" or "external sites". A metric that is not defined there (one class only) is a
    row with a blank value and the reason as its method. `models` is how many models a patient's score is the mean of;
    `primary` marks the rows to quote (see `primary`). With `experiment` its encoder, model, strategy and endpoint
    are columns too. With `inner` (predictions of held-out inner folds: trained_on, repeat, fold, patient_id, label,
    score) every model has a threshold of its own, and sensitivity, specificity and balanced accuracy are rows as well.
    """
    rows = []
    for name, table in predictions.groupby("experiment", sort=False):
        check_predictions(table, f"predictions of {name}")
        stated = {"experiment": name, **described(experiment)}
        for scope in scopes(table):
            rows += [{**stated, **_scope_columns(scope), **row} for row in _rows(scope, spec)]
        for row in within_folds(table, spec.confidence).to_dict("records"):
            rows.append(
                {
                    **stated,
                    **row,
                    "models": 1,
                    "metric": "auroc_within_folds",
                    "method": "DeLong, placements within folds",
                }
            )
        rows += [{**stated, **row} for row in _over_folds(table, spec)]
        if inner is not None:
            own = inner[inner["experiment"] == name] if "experiment" in inner.columns else inner
            rows += [{**stated, **row} for row in _decisions(table, own, spec)]
    columns = ["experiment", *described(experiment), *COLUMNS]
    return pd.DataFrame(rows, columns=columns).assign(primary=lambda table: _is_primary(table).astype(int))[columns]


def primary(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that figures and the report show: AUROC of every site, and AUROC within sites of every group of sites.

    Over several sites a pair of a positive of one and a negative of another says how sites differ, not how patients do.
    Held-out patients are ranked by their mean score over the repeats, folds laid together: a little below what their models
    reach, since each fold's model has its own level (`auroc_within_folds` is without that, and rests on fewer pairs).
    """
    return metrics[_is_primary(metrics)]


def _is_primary(metrics: pd.DataFrame) -> pd.Series:
    group = metrics["site"].isin(GROUPS)
    wanted = metrics["metric"] == np.where(group, "auroc_within_sites", "auroc")
    return wanted & (metrics["method"] == PRIMARY)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """A predictions table; ids stay text."""
    return read_table(path, text=("experiment", "trained_on", "patient_id", "site", "role", "split"))


def described(experiment: ExperimentSpec | None) -> Mapping[str, str]:
    """What an experiment is made of, by name; nothing where it is not known."""
    if experiment is None:
        return {}
    return {
        "encoder": experiment.encoder,
        "model": experiment.model.name,
        "strategy": experiment.strategy.name,
        "endpoint": experiment.endpoint,
    }


def _scope_columns(scope: Scope) -> dict[str, Any]:
    return {
        "trained_on": scope.trained_on,
        "split": scope.split,
        "site": scope.site,
        "patients": len(scope.table),
        "positives": int(scope.labels.sum()),
        "models": scope.models,
    }


def _rows(scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
    labels, scores = scope.labels, scope.scores
    if not delong.both_classes(labels):
        yield _row("auroc", np.nan, np.nan, np.nan, "not defined: patients of one class only")
        return
    yield _row("auroc", *delong.logit_interval(labels, scores, spec.confidence), PRIMARY)
    yield _row("auroc", *delong.interval(labels, scores, spec.confidence), "DeLong")
    yield _row("prevalence", *wilson_interval(int(labels.sum()), len(labels), spec.confidence), "Wilson")
    weights = bootstrap_weights(scope.table, spec)
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


def _decisions(predictions: pd.DataFrame, inner: pd.DataFrame, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
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
            yield {**_scope_columns(scope), **row}


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


def bootstrap_weights(table: pd.DataFrame, spec: MetricsSpec) -> np.ndarray:
    """Resamples of these patients within site and label; the same patients give the same draws in every arm."""
    strata = strata_of(table["site"].to_numpy(), table["label"].to_numpy())
    return resamples(strata, spec.bootstrap, rng(spec.seed, "bootstrap", *table["patient_id"]))


def _row(metric: str, value: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}
