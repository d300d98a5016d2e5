"""A kind's measures on one arm and site -> rows of the table of metrics, with intervals by a bootstrap over patients."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from mil.config import MetricsSpec
from mil.statistics.arms import APART, GROUPS, Scope, scopes
from mil.statistics.folds import KEYS, corrected_resampled_t
from mil.statistics.held_out import inflation
from mil.statistics.intervals import Bounds, on_logit_scale

if TYPE_CHECKING:
    from mil.endpoints.kinds.kind import Kind

Scale = Literal["share", "correlation", "positive", "real"]
BOOTSTRAP = "patient bootstrap"
ON_SCALE = {"share": ", logit scale", "correlation": ", Fisher's z", "positive": ", log scale", "real": ""}
LIMITS = {"share": (0.0, 1.0), "correlation": (-1.0, 1.0), "positive": (0.0, np.inf), "real": (-np.inf, np.inf)}


def measured_rows(kind: "Kind", scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
    """Every measure of `kind`, and on a group of sites the primary one within sites; undefined ones with their reason."""
    labels, scores, weights = kind.labels(scope.table), kind.scores(scope.table), kind.weights(scope.table, spec)
    everyone = np.ones((1, len(scope.table)))
    reason = kind.undefined(scope.table)
    for measure in (kind.primary, *kind.further):
        function = measure.function
        value, drawn = float(function(labels, scores, everyone)[0]), function(labels, scores, weights)
        if measure is kind.primary:
            drawn = widened(kind, scope, value, drawn)
        yield row_of(measure.name, measure.scale, value, drawn, len(labels), spec.confidence, reason)
    if scope.site in GROUPS:
        value = float(kind.within(labels, scores, everyone, scope.sites)[0])
        drawn = widened(kind, scope, value, kind.within(labels, scores, weights, scope.sites))
        name, reason = f"{kind.primary.name}_within_sites", reason or "at no site can it be formed"
        yield row_of(name, kind.primary.scale, value, drawn, len(labels), spec.confidence, reason)


def interval_within(kind: "Kind", scope: Scope, spec: MetricsSpec) -> tuple[float, float, float, str]:
    """The primary measure within sites, its interval, and how that was made."""
    weights = np.concatenate([np.ones((1, len(scope.table))), kind.weights(scope.table, spec)])
    found = kind.within(kind.labels(scope.table), kind.scores(scope.table), weights, scope.sites)
    value = float(found[0])
    drawn = widened(kind, scope, value, found[1:])
    bounds = bootstrap_bounds(kind.primary.scale, value, drawn, len(scope.table), spec.confidence)
    return value, bounds.low, bounds.high, bounds.method


def widened(kind: "Kind", scope: Scope, value: float, drawn: np.ndarray) -> np.ndarray:
    """Resamples `drawn`, of held-out patients further from `value`: each patient trained the models of others as well."""
    if scope.folds is None or not np.isfinite(drawn).any():
        return drawn
    chance = value if kind.primary.chance is None else kind.primary.chance
    return value + (drawn - value) * np.sqrt(inflation(value, float(np.nanvar(drawn)), None, chance))


def row_of(
    metric: str, scale: Scale, value: float, drawn: np.ndarray, patients: int, confidence: float, reason: str
) -> dict[str, Any]:
    """One row; `reason` says why the value is blank, where it is."""
    if not np.isfinite(value):
        bounds = Bounds(np.nan, np.nan, f"not defined: {reason or 'patients do not vary'}")
        value = np.nan
    else:
        bounds = bootstrap_bounds(scale, value, drawn, patients, confidence)
    return {"metric": metric, "value": value, "low": bounds.low, "high": bounds.high, "method": bounds.method}


def bootstrap_bounds(scale: Scale, value: float, drawn: np.ndarray, patients: int, confidence: float) -> Bounds:
    """Bounds of a value from the deviation of its resamples, t quantile, on a scale that ends where the measure does.

    Percentiles of resamples are short of their level with few patients. Resamples in which the measure is not defined are
    left out, and more than one in twenty of them leaves no interval.
    """
    known = drawn[np.isfinite(drawn)]
    if len(known) < 0.95 * len(drawn):
        lost = 1 - len(known) / len(drawn)
        return Bounds(np.nan, np.nan, f"no interval: not defined in {lost:.0%} of the resamples")
    error, degrees = float(known.std()), max(patients - 1, 1)
    error = error if error > 1e-9 else 0.0
    if scale == "share":
        return on_logit_scale(value, error, degrees, confidence, patients, BOOTSTRAP)
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * error
    method = BOOTSTRAP + ON_SCALE[scale]
    if not error > 0 or (scale == "correlation" and abs(value) >= 1) or (scale == "positive" and value <= 0):
        return Bounds(np.nan, np.nan, "no interval: resamples do not vary")
    if scale == "correlation":
        half /= 1 - value**2
        return Bounds(float(np.tanh(np.arctanh(value) - half)), float(np.tanh(np.arctanh(value) + half)), method)
    if scale == "positive":
        return Bounds(float(value * np.exp(-half / value)), float(value * np.exp(half / value)), method)
    return Bounds(value - half, value + half, method)


def values_of_folds(kind: "Kind", folds: pd.DataFrame) -> pd.Series:
    """The primary measure within sites of every (repeat, fold) of `Scope.folds`."""
    found = {
        key: float(
            kind.within(kind.labels(part), kind.scores(part), np.ones((1, len(part))), part["site"].to_numpy())[0]
        )
        for key, part in folds.groupby(list(APART))
    }
    return pd.Series(found, dtype=float)


def fold_values(predictions: pd.DataFrame, kind: "Kind") -> pd.DataFrame:
    """trained_on, split, site, repeat, fold, patients, positives, value: the primary measure of each fold's models alone.

    Folds in which it is not defined at a site are left out; groups of sites count patients of the same site.
    """
    rows = []
    for (repeat, fold), part in predictions.groupby(list(APART)):
        for scope in scopes(part):
            labels, scores = kind.labels(scope.table), kind.scores(scope.table)
            value = float(kind.within(labels, scores, np.ones((1, len(labels))), scope.sites)[0])
            place = (scope.trained_on, scope.split, scope.site, repeat, fold)
            rows.append((*place, len(labels), kind.positives(scope.table), value))
    table = pd.DataFrame(rows, columns=[*KEYS, *APART, "patients", "positives", "value"])
    return table[np.isfinite(table["value"].astype(float))].sort_values([*APART, *KEYS], ignore_index=True)


def mean_of_folds(predictions: pd.DataFrame, kind: "Kind", spec: MetricsSpec) -> Iterator[dict[str, Any]]:
    """Mean of the folds' primary measure, with an interval that allows for what their training sets have in common."""
    inside = predictions[predictions["split"] != "external"]
    number = inside["fold"].nunique()
    if number < 2:
        return
    low, high = LIMITS[kind.primary.scale]
    for key, folds in fold_values(inside, kind).groupby(list(KEYS), sort=False):
        found = corrected_resampled_t(
            folds["value"].to_numpy(dtype=float), 1 / (number - 1), spec.confidence, is_share=False
        )
        method = f"corrected resampled t, {len(folds)} folds"
        if not found.low < found.high:
            method = "not defined: folds do not vary, or one only"
        yield {
            **dict(zip(KEYS, key, strict=True)),
            "patients": int(folds.groupby("repeat")["patients"].sum().max()),
            "positives": _most(folds),
            "models": 1,
            "metric": f"{kind.primary.name}_mean_of_folds",
            "value": found.difference,
            "low": float(np.clip(found.low, low, high)),
            "high": float(np.clip(found.high, low, high)),
            "method": method,
        }


def _most(folds: pd.DataFrame) -> int | None:
    known = folds.dropna(subset=["positives"])
    return int(known.groupby("repeat")["positives"].sum().max()) if len(known) else None
