"""Predictions -> metrics with intervals, by site and arm, as one tidy table."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mil.config import ExperimentSpec, MetricsSpec
from mil.metrics import calibration, classification, delong, ranking
from mil.metrics.arms import ENSEMBLE, EXTERNAL_SITES, TRAINING_SITES, Scope, check_predictions, scopes
from mil.metrics.bootstrap import Metric, percentile_interval, point, resamples, strata_of
from mil.metrics.decision import net_benefit
from mil.metrics.folds import within_folds
from mil.metrics.registry import METRICS
from mil.metrics.thresholds import choose_thresholds, vote
from mil.rng import rng
from mil.tables import read_table

# DeLong's plain normal interval (the one pROC gives) covers 91-94 % with 40-60 patients, on the logit scale 95-96 %
# (benchmarks/coverage.py). Both are in the table; figures and the report show this one.
PRIMARY = "DeLong, logit scale"
GROUPS = (TRAINING_SITES, EXTERNAL_SITES)
DECISIONS: dict[str, Metric] = {
    "sensitivity": classification.sensitivity,
    "specificity": classification.specificity,
    "balanced_accuracy": classification.balanced_accuracy,
}
REGISTERED = (ranking, classification, calibration)  # importing them fills METRICS
COLUMNS = (
    "trained_on",
    "split",
    "site",
    "patients",
    "positives",
    "metric",
    "value",
    "low",
    "high",
    "method",
)


def score(
    predictions: pd.DataFrame,
    spec: MetricsSpec,
    experiment: ExperimentSpec | None = None,
    inner: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The metrics of one experiment's predictions: a row a (trained_on, split, site, metric, interval method).

    `site` is a site, "training sites" or "external sites". A metric that is not defined there (one class only) is a
    row with a blank value and the reason as its method. With `experiment` its encoder, model, strategy and endpoint
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
            rows.append({**stated, **row, "metric": "auroc_within_folds", "method": "DeLong, placements within folds"})
        if inner is not None:
            own = inner[inner["experiment"] == name] if "experiment" in inner.columns else inner
            rows += [{**stated, **row} for row in _decisions(table, own, spec)]
    return pd.DataFrame(rows, columns=["experiment", *described(experiment), *COLUMNS])


def primary(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that figures and the report show: AUROC of every site, and AUROC within sites of every group of sites.

    Over several sites a pair of a positive of one and a negative of another says how sites differ, not how patients do.
    """
    group = metrics["site"].isin(GROUPS)
    wanted = metrics["metric"] == np.where(group, "auroc_within_sites", "auroc")
    return metrics[wanted & (metrics["method"] == PRIMARY)]


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
    for name in METRICS:
        yield _bootstrapped(name, METRICS[name], labels, scores, weights, spec)
    for threshold in spec.decision_thresholds:
        benefit = partial(net_benefit, threshold=threshold)
        yield _bootstrapped(f"net_benefit_{threshold:g}", benefit, labels, scores, weights, spec)
    sites = scope.table["site"].to_numpy()
    if scope.site in GROUPS and any(delong.both_classes(labels[sites == site]) for site in np.unique(sites)):
        yield _row("auroc_within_sites", *delong.within_interval(labels, scores, sites, spec.confidence), PRIMARY)
        within = partial(ranking.auroc_within, groups=sites)
        yield _bootstrapped("auroc_within_sites", within, labels, scores, weights, spec)


def _decisions(predictions: pd.DataFrame, inner: pd.DataFrame, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
    """Rows of the metrics that need a decision; the ensemble has no threshold of its own."""
    voted = vote(predictions, choose_thresholds(inner))
    if voted.empty:
        return
    for scope in scopes(voted.assign(score=voted["vote"])):
        if scope.trained_on == ENSEMBLE or not delong.both_classes(scope.labels):
            continue
        weights = bootstrap_weights(scope.table, spec)
        for name, metric in DECISIONS.items():
            row = _bootstrapped(name, metric, scope.labels, scope.scores, weights, spec)
            yield {**_scope_columns(scope), **row, "method": "patient bootstrap; threshold on inner folds"}


def _bootstrapped(
    name: str, metric: Metric, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, spec: MetricsSpec
) -> dict[str, Any]:
    drawn = percentile_interval(metric(labels, scores, weights), spec.confidence)
    return _row(name, point(metric, labels, scores), *drawn, "patient bootstrap")


def wilson_interval(count: int, total: int, confidence: float) -> tuple[float, float, float]:
    """A share with Wilson's score interval (1927)."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = count / total
    centre, half = share + z**2 / (2 * total), z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return share, float((centre - half) / (1 + z**2 / total)), float((centre + half) / (1 + z**2 / total))


def bootstrap_weights(table: pd.DataFrame, spec: MetricsSpec) -> np.ndarray:
    """Resamples of these patients within site and label; the same patients give the same draws in every arm."""
    strata = strata_of(table["site"].to_numpy(), table["label"].to_numpy())
    return resamples(strata, spec.bootstrap, rng(spec.seed, "bootstrap", *table["patient_id"]))


def _row(metric: str, value: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}
