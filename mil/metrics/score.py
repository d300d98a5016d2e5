"""Predictions -> metrics with intervals, by site and arm, as one tidy table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.metrics import delong, ranking
from mil.metrics.arms import Scope, check_predictions, scopes
from mil.metrics.bootstrap import percentile_interval, point, resamples, strata_of
from mil.rng import rng
from mil.tables import read_table

# DeLong's plain normal interval (the one pROC gives) covers 90-93 % at 60 patients; on the logit scale it keeps 95 %
# (benchmarks/coverage.py). Both are in the table; figures and the report show this one.
PRIMARY = "DeLong, logit scale"
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


def score(predictions: pd.DataFrame, spec: MetricsSpec, experiment: ExperimentSpec | None = None) -> pd.DataFrame:
    """The metrics of one experiment's predictions: a row a (trained_on, split, site, metric, interval method).

    `site` is a site, "training sites" or "external sites". A metric that is not defined there (one class only) is a
    row with a blank value and the reason as its method. With `experiment` its encoder, model, strategy and endpoint
    are columns too.
    """
    name = str(predictions["experiment"].iloc[0]) if len(predictions) else ""
    check_predictions(predictions, f"predictions of {name}")
    rows = [
        {"experiment": name, **described(experiment), **_scope_columns(scope), **row}
        for scope in scopes(predictions)
        for row in _rows(scope, spec)
    ]
    return pd.DataFrame(rows, columns=["experiment", *described(experiment), *COLUMNS])


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
    weights = bootstrap_weights(scope.table, spec)
    drawn = percentile_interval(ranking.auroc(labels, scores, weights), spec.confidence)
    yield _row("auroc", point(ranking.auroc, labels, scores), *drawn, "patient bootstrap")


def bootstrap_weights(table: pd.DataFrame, spec: MetricsSpec) -> np.ndarray:
    """Resamples of these patients within site and label; the same patients give the same draws in every arm."""
    strata = strata_of(table["site"].to_numpy(), table["label"].to_numpy())
    return resamples(strata, spec.bootstrap, rng(spec.seed, "bootstrap", *table["patient_id"]))


def _row(metric: str, value: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}
