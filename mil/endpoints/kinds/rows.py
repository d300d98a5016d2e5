"""A kind's measures on one arm and site -> rows of the table of metrics, with intervals by a bootstrap over patients."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mil.config import MetricsSpec
from mil.endpoints.kinds.bounds import LIMITS, bootstrap_bounds, row_of
from mil.endpoints.kinds.kind import PAIRED_BOOTSTRAP, Kind, Pair, paired_bootstrap
from mil.statistics.arms import APART, GROUPS, Scope, scopes
from mil.statistics.folds import KEYS, corrected_resampled_t
from mil.statistics.held_out import inflation

OVER_FOLDS = "corrected resampled t-test"


class Bootstrapped(Kind):
    """A kind whose measures have intervals and tests by a bootstrap over patients."""

    def interval(self, scope: Scope, spec: MetricsSpec) -> tuple[float, float, float, str]:
        """The primary measure within sites, with its interval, and how that was made or why there is none."""
        return interval_within(self, scope, spec)

    def rows(self, scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
        """metric, value, low, high and method of every measure on one scope."""
        return measured_rows(self, scope, spec)

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: MetricsSpec
    ) -> Iterator[dict[str, Any]]:
        """Rows that rest on more than one scope's mean scores: the primary measure over the folds."""
        return mean_of_folds(predictions, self, spec)

    def compared(self, first: Scope, second: Scope, spec: MetricsSpec) -> Pair | None:
        """The primary measure of two scopes of the same patients and the test of their difference; None where it is not defined.

        Patients of one site are set against each other. Held-out patients are tested fold by fold, since training sets overlap;
        others by a paired bootstrap, the models being given.
        """
        if first.folds is not None and second.folds is not None:
            return self._over_folds(first.folds, second.folds, spec)
        labels, sites = self.labels(first.table), first.sites
        weights = np.concatenate([np.ones((1, len(first.table))), self.weights(first.table, spec)])
        one, other = (self.within(labels, self.scores(scope.table), weights, sites) for scope in (first, second))
        if not np.isfinite([one[0], other[0]]).all():
            return None
        tested = paired_bootstrap(one, other, spec.confidence, self.primary.scale == "share")
        return Pair((float(one[0]), float(other[0])), tested, PAIRED_BOOTSTRAP)

    def _over_folds(self, first: pd.DataFrame, second: pd.DataFrame, spec: MetricsSpec) -> Pair | None:
        parts = [values_of_folds(self, folds) for folds in (first, second)]
        both = pd.concat(parts, axis=1, keys=["first", "second"], join="inner").dropna()
        number = min(folds["fold"].nunique() for folds in (first, second))
        if number < 2 or both.empty:
            return None
        change = (both["first"] - both["second"]).to_numpy()
        tested = corrected_resampled_t(change, 1 / (number - 1), spec.confidence, self.primary.scale == "share")
        values = float(both["first"].mean()), float(both["second"].mean())
        return Pair(values, tested, f"{OVER_FOLDS}, {len(both)} folds")


def measured_rows(kind: Kind, scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
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


def interval_within(kind: Kind, scope: Scope, spec: MetricsSpec) -> tuple[float, float, float, str]:
    """The primary measure within sites, its interval, and how that was made."""
    weights = np.concatenate([np.ones((1, len(scope.table))), kind.weights(scope.table, spec)])
    found = kind.within(kind.labels(scope.table), kind.scores(scope.table), weights, scope.sites)
    value = float(found[0])
    drawn = widened(kind, scope, value, found[1:])
    bounds = bootstrap_bounds(kind.primary.scale, value, drawn, len(scope.table), spec.confidence)
    return value, bounds.low, bounds.high, bounds.method


def widened(kind: Kind, scope: Scope, value: float, drawn: np.ndarray) -> np.ndarray:
    """Resamples `drawn`, of held-out patients further from `value`: each patient trained the models of others as well."""
    if scope.folds is None or not np.isfinite(drawn).any():
        return drawn
    chance = value if kind.primary.chance is None else kind.primary.chance
    return value + (drawn - value) * np.sqrt(inflation(value, float(np.nanvar(drawn)), None, chance))


def values_of_folds(kind: Kind, folds: pd.DataFrame) -> pd.Series:
    """The primary measure within sites of every (repeat, fold) of `Scope.folds`."""
    found = {
        key: float(
            kind.within(kind.labels(part), kind.scores(part), np.ones((1, len(part))), part["site"].to_numpy())[0]
        )
        for key, part in folds.groupby(list(APART))
    }
    return pd.Series(found, dtype=float)


def fold_values(predictions: pd.DataFrame, kind: Kind) -> pd.DataFrame:
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


def mean_of_folds(predictions: pd.DataFrame, kind: Kind, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
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
