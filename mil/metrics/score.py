"""Predictions -> metrics with intervals, by site and arm, as one tidy table."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.endpoints import ENDPOINTS, Endpoint, build_endpoint
from mil.endpoints.endpoint import scope_columns
from mil.errors import MilError
from mil.schemas import CURVES, FOLDS, METRICS
from mil.statistics.arms import GROUPS, scopes
from mil.tables import require_columns, stacked

MEASURES = tuple(ENDPOINTS[name].primary.name for name in ENDPOINTS)


def score(
    predictions: pd.DataFrame,
    spec: MetricsSpec,
    experiment: ExperimentSpec | None = None,
    inner: pd.DataFrame | None = None,
    kind: Endpoint | None = None,
) -> pd.DataFrame:
    """The metrics of one experiment's predictions: a row a (trained_on, split, site, metric, interval method).

    `site` is a site, "training sites" or "external sites". A metric that is not defined there (one class only) is a
    row with a blank value and the reason as its method. `models` is how many models a patient's score is the mean of;
    `primary` marks the rows to quote (see `primary`). With `experiment` its encoder, model, strategy and endpoint
    are columns too. With `inner` (predictions of held-out inner folds: trained_on, repeat, fold, patient_id, label,
    score) every model has a threshold of its own, and sensitivity, specificity and balanced accuracy are rows as well.
    `kind` is the endpoint's, two classes without; `positives` are the events of survival, blank for other kinds.
    """
    rows, kind = [], kind or build_endpoint()
    require_columns(predictions, kind.predicted, "predictions")
    if predictions.empty:
        raise MilError("predictions: no row stands in the table; run `mil predict` again")
    for name, table in predictions.groupby("experiment", sort=False, dropna=False):
        table = kind.checked(table, f"predictions of {name}")
        stated = {"experiment": name, **described(experiment)}
        for scope in scopes(table):
            of_scope = scope_columns(kind, scope)
            rows += [{**stated, **of_scope, **row} for row in kind.rows(scope, spec)]
        part = inner
        if inner is not None and "experiment" in inner.columns:
            part = inner[inner["experiment"] == name]
        rows += [{**stated, **row} for row in kind.beyond(table, part, spec)]
    columns = ["experiment", *described(experiment), *METRICS]
    metrics = pd.DataFrame(rows, columns=columns).assign(primary=lambda table: _is_primary(table).astype(int))[columns]
    return whole_counts(metrics)


def curves_and_folds(
    predictions: pd.DataFrame,
    spec: MetricsSpec,
    inner: pd.DataFrame | None = None,
    kind: Endpoint | None = None,
) -> dict[str, pd.DataFrame]:
    """Tables `curves` and `folds` of the same predictions: what figures draw as curves, and the primary measure of every fold."""
    kind, parts = kind or build_endpoint(), {"curves": [], "folds": []}
    for name, table in predictions.groupby("experiment", sort=False):
        table = kind.checked(table, f"predictions of {name}")
        for scope in scopes(table):
            of_scope = {"experiment": name, "trained_on": scope.trained_on, "split": scope.split, "site": scope.site}
            parts["curves"] += [points.assign(**of_scope) for points in kind.curves(scope, table, inner, spec)]
        parts["folds"].append(kind.folds(table).assign(experiment=name))
    columns = {"curves": ["experiment", *CURVES], "folds": ["experiment", *FOLDS]}
    return {
        table: stacked([pd.DataFrame(columns=columns[table]), *frames]).reindex(columns=columns[table])
        for table, frames in parts.items()
    }


def whole_counts(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with `positives` as whole numbers where some are blank."""
    return table.astype({"positives": "Int64"}) if table["positives"].isna().any() else table


def primary(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that figures and the report show: the kind's primary measure of every site, and within sites of every group.

    Over several sites a pair of a positive of one and a negative of another says how sites differ, not how patients do. Of
    held-out patients the AUROC is that over pairs of one fold (`mil.statistics.held_out`).
    """
    return metrics[_is_primary(metrics)]


def _is_primary(metrics: pd.DataFrame) -> pd.Series:
    within = metrics["metric"].isin([f"{name}_within_sites" for name in MEASURES])
    return pd.Series(np.where(metrics["site"].isin(GROUPS), within, metrics["metric"].isin(MEASURES)), metrics.index)


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
