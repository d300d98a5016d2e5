"""What is predicted and how results are measured: one object per kind of endpoint, in training, tables and words.

Measures have intervals and tests by a bootstrap over patients, unless a kind has better ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil.endpoints.bounds import LIMITS, WIDEST, bootstrap_bounds, row_of
from mil.endpoints.measures import PAIRED_BOOTSTRAP, Measure, Pair, paired_bootstrap
from mil.endpoints.target import Target
from mil.errors import MilError
from mil.registry import Registry
from mil.statistics.arms import APART, GROUPS, OTHER_SITES, OWN_SITE, PREDICTED, Scope, check_patients, refuse, scopes
from mil.statistics.bootstrap import bootstrap_weights
from mil.statistics.differences import Difference
from mil.statistics.folds import KEYS, corrected_resampled_t
from mil.statistics.held_out import inflation
from mil.tables import has_label, labelled, require_columns

if TYPE_CHECKING:
    from mil.config import MetricsSpec

OVER_FOLDS = "corrected resampled t-test"
FEWEST = 5
"""Events, or patients of a class, below which a bootstrap within them is too narrow: of 30 patients with 1, 2, 3, 5 and 10 events the
interval of the C-index holds the truth in 34-43, 79, 85-87, 93-95 and 94 %, with as many patients of a class that of the macro AUROC in
73-82, 89, 90-92, 93-96 and 95-98 %."""


class Endpoint(Target):
    """Base of the kinds of endpoint."""

    primary: Measure
    """The measure that arms are compared by."""
    further: tuple[Measure, ...] = ()
    strata: tuple[str, ...] = ("site", "label")
    """Patients are drawn within these."""
    predicted: tuple[str, ...] = PREDICTED
    """Columns that a table of predictions needs."""
    quantity = "score"
    """What a score is, as the name of a column."""
    better, worse = "", ""
    """What a model does that is better (worse) than chance, as in `FedAvg ...`."""
    outcome = ""
    """What `positives` are, in words; '' where there is nothing to count."""
    having = ""
    """The outcome as in `30 % positive for response`; '' where there is nothing to count."""
    measured = ""
    """How results are measured, in sentences; '' where the report's methods describe it at length."""
    watched = ""
    """Name of the endpoint's metric in the round table, in words."""
    pairs = "pairs of patients of the same site"
    """What the primary measure is formed over on a group of sites."""

    def checked(self, table: pd.DataFrame, where: str) -> pd.DataFrame:
        """Predictions of patients with a label, as numbers; raises for a column that is missing and a value that cannot be."""
        require_columns(table, self.predicted, where)
        known = labelled(table)
        if known.empty and len(table):
            number = table["patient_id"].nunique()
            raise MilError(f"{where}: none of {number} patients has a label, so that nothing can be measured")
        both = set(known["patient_id"]) & set(table.loc[~has_label(table), "patient_id"])
        if both:
            raise MilError(
                f"{where}: patient {min(both)} has a label in some rows and none in others; run `mil predict` again"
            )
        table = self.coded(known)
        refuse(table, self.valid(table), where, self.name)
        return check_patients(table, where)

    def coded(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with labels as numbers."""
        return table

    def named(self, table: pd.DataFrame) -> pd.Series:
        """Labels as the settings spell them."""
        return table["label"].astype(str)

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """By column, whether a row's value can be."""
        raise NotImplementedError

    def labels_of(self, table: pd.DataFrame) -> np.ndarray:
        """Labels as measures take them."""
        return table["label"].to_numpy()

    def scores_of(self, table: pd.DataFrame) -> np.ndarray:
        """Scores as measures take them."""
        return table["score"].to_numpy(dtype=float)

    def positives(self, table: pd.DataFrame) -> int | None:
        """Patients with the outcome (label 1, events); none where there is no such thing."""
        return int(table["label"].sum()) if self.outcome else None

    def undefined(self, table: pd.DataFrame) -> str:
        """Why the primary measure does not exist for these patients; '' where it does."""
        raise NotImplementedError

    def by_model(self, scope: Scope) -> pd.DataFrame | None:
        """The scores of each repeat and fold, where the primary measure compares no scores of two models; None where it does."""
        return None

    def too_few(self, table: pd.DataFrame) -> str:
        """Why these patients' measures have no interval and no test though they have values; '' where they have."""
        return ""

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """The primary measure, patients set against those of their own group (site) only."""
        raise NotImplementedError

    def within_same(
        self, labels: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray, groups: np.ndarray
    ) -> list[np.ndarray]:
        """`within` of several scores of the same patients, all of them over the same groups."""
        return [self.within(labels, part, weights, groups) for part in scores]

    def value_within(self, table: pd.DataFrame) -> float:
        """The primary measure of these patients within sites; nan where it is not defined."""
        everyone, sites = np.ones((1, len(table))), table["site"].to_numpy()
        return float(self.within(self.labels_of(table), self.scores_of(table), everyone, sites)[0])

    def has_within(self, table: pd.DataFrame) -> bool:
        """Whether the primary measure within sites exists for these patients."""
        return bool(np.isfinite(self.value_within(table)))

    def interval(self, scope: Scope, spec: "MetricsSpec") -> tuple[float, float, float, str]:
        """The primary measure within sites, with its interval, and how that was made or why there is none."""
        values = self._primary(scope, self._and_all(scope, spec))
        value = float(values[0])
        if few := self.too_few(scope.table):
            return value, np.nan, np.nan, few
        drawn = self._widened(scope, value, values[1:])
        bounds = bootstrap_bounds(self.primary.scale, value, drawn, len(scope.table), spec.confidence)
        return value, bounds.low, bounds.high, bounds.method

    def weights(self, table: pd.DataFrame, spec: "MetricsSpec") -> np.ndarray:
        """Resamples (resamples, n) of these patients."""
        return bootstrap_weights(table, spec, self.strata)

    def rows(self, scope: Scope, spec: "MetricsSpec") -> Iterator[dict[str, Any]]:
        """metric, value, low, high and method of every measure on one scope, and on a group of sites of the primary one within sites."""
        labels, scores, weights = self.labels_of(scope.table), self.scores_of(scope.table), self._and_all(scope, spec)
        reason, few = self.undefined(scope.table), self.too_few(scope.table)
        for measure in (self.primary, *self.further):
            first = measure is self.primary
            values = self._primary(scope, weights, False) if first else measure.function(labels, scores, weights)
            value = float(values[0])
            drawn = self._widened(scope, value, values[1:]) if first else values[1:]
            yield row_of(measure.name, measure.scale, value, drawn, len(labels), spec.confidence, reason, few)
        if scope.site in GROUPS:
            values = self._primary(scope, weights)
            value = float(values[0])
            drawn = self._widened(scope, value, values[1:])
            name, reason = f"{self.primary.name}_within_sites", reason or "at no site can it be formed"
            yield row_of(name, self.primary.scale, value, drawn, len(labels), spec.confidence, reason, few)

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[dict[str, Any]]:
        """Rows that rest on more than one scope's mean scores: the mean of the folds' primary measure.

        Its interval allows for what the folds' training sets have in common.
        """
        inside = predictions[predictions["split"] != "external"]
        number = inside["fold"].nunique()
        if number < 2:
            return
        low, high = LIMITS[self.primary.scale]
        for key, folds in self.folds(inside).groupby(list(KEYS), sort=False):
            values = folds["value"].to_numpy(dtype=float)
            interval = corrected_resampled_t(values, 1 / (number - 1), spec.confidence, widest=np.inf)
            method = f"corrected resampled t, {len(folds)} folds"
            if not interval.low < interval.high:
                method = "not defined: folds do not vary, or one only"
            known = folds.dropna(subset=["positives"])
            yield {
                **dict(zip(KEYS, key, strict=True)),
                "patients": int(folds.groupby("repeat")["patients"].sum().max()),
                "positives": int(known.groupby("repeat")["positives"].sum().max()) if len(known) else None,
                "models": 1,
                "metric": f"{self.primary.name}_mean_of_folds",
                "value": interval.difference,
                "low": float(np.clip(interval.low, low, high)),
                "high": float(np.clip(interval.high, low, high)),
                "method": method,
            }

    def curves(
        self, scope: Scope, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[pd.DataFrame]:
        """Points of the curves that figures draw of one scope: curve, group, x, y, low, high and patients, as far as a curve has them."""
        return iter(())

    def folds(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """trained_on, split, site, repeat, fold, patients, positives, value: the primary measure of each fold's models alone.

        Folds in which it is not defined at a site are left out; groups of sites count patients of the same site.
        """
        rows = []
        for (repeat, fold), part in predictions.groupby(list(APART)):
            for scope in scopes(part):
                key = (scope.trained_on, scope.split, scope.site, repeat, fold)
                counts = (len(scope.table), self.positives(scope.table))
                rows.append((*key, *counts, self.value_within(scope.table)))
        table = pd.DataFrame(rows, columns=[*KEYS, *APART, "patients", "positives", "value"])
        return table[np.isfinite(table["value"].astype(float))].sort_values([*APART, *KEYS], ignore_index=True)

    def compared(self, first: Scope, second: Scope, spec: "MetricsSpec") -> Pair | None:
        """The primary measure of two scopes of the same patients and the test of their difference; None where it is not defined.

        Patients of one site are set against each other. Held-out patients are tested fold by fold, since training sets overlap;
        others by a paired bootstrap, the models being given.
        """
        few = self.too_few(first.table)
        if not few and first.folds is not None and second.folds is not None:
            return self._over_folds(first.folds, second.folds, spec)
        (table, groups), (again, _) = self.groups_of(first), self.groups_of(second)
        weights = at_rows(self._and_all(first, spec), first, table)
        scores = [self.scores_of(part) for part in (table, again)]
        values, other = self.within_same(self.labels_of(table), scores, weights, groups)
        if not np.isfinite([values[0], other[0]]).all():
            return None
        if few:
            nothing = Difference(float(values[0] - other[0]), np.nan, np.nan, np.nan, np.nan)
            return Pair((float(values[0]), float(other[0])), nothing, few.replace("interval", "test", 1))
        tested = paired_bootstrap(values, other, spec.confidence, WIDEST[self.primary.scale])
        return Pair((float(values[0]), float(other[0])), tested, PAIRED_BOOTSTRAP)

    def _over_folds(self, first: pd.DataFrame, second: pd.DataFrame, spec: "MetricsSpec") -> Pair | None:
        both = self._values_of_folds(first, second)
        number = min(folds["fold"].nunique() for folds in (first, second))
        if number < 2 or not len(both):
            return None
        change = both[:, 0] - both[:, 1]
        tested = corrected_resampled_t(change, 1 / (number - 1), spec.confidence, WIDEST[self.primary.scale])
        values = float(both[:, 0].mean()), float(both[:, 1].mean())
        return Pair(values, tested, f"{OVER_FOLDS}, {len(both)} folds")

    def _values_of_folds(self, first: pd.DataFrame, second: pd.DataFrame) -> np.ndarray:
        """The primary measure within sites of both (folds, 2), for every (repeat, fold) of `Scope.folds` where both have it.

        Both are formed over the same patients and sites of the fold.
        """
        seconds, values = dict(tuple(second.groupby(list(APART)))), []
        for key, part in first.groupby(list(APART)):
            if key in seconds:
                other = seconds[key].set_index("patient_id")
                part = part[part["patient_id"].isin(other.index)]
                scores = [self.scores_of(part), self.scores_of(other.loc[part["patient_id"]])]
                everyone, sites = np.ones((1, len(part))), part["site"].to_numpy()
                values.append([value[0] for value in self.within_same(self.labels_of(part), scores, everyone, sites)])
        table = np.array(values, dtype=float).reshape(-1, 2)
        return table[np.isfinite(table).all(axis=1)]

    def _and_all(self, scope: Scope, spec: "MetricsSpec") -> np.ndarray:
        """The patients as they are, and their resamples (1 + resamples, n)."""
        return np.concatenate([np.ones((1, len(scope.table))), self.weights(scope.table, spec)])

    def _primary(self, scope: Scope, weights: np.ndarray, within_sites: bool = True) -> np.ndarray:
        """The primary measure of `scope` in each resample of its patients, also of patients of two sites unless `within_sites`."""
        table, groups = self.groups_of(scope, within_sites)
        return self.within(self.labels_of(table), self.scores_of(table), at_rows(weights, scope, table), groups)

    def groups_of(self, scope: Scope, within_sites: bool = True) -> tuple[pd.DataFrame, np.ndarray]:
        """A row per score that is compared, and its group: only rows of one group are compared.

        Patients of two sites who are judged by two models are not, where scores of two models have no common zero.
        """
        apart = self.by_model(scope)
        table, keys = (scope.table, ()) if apart is None else (apart, APART)
        within_sites = within_sites or (self.relative and scope.trained_on in {OWN_SITE, OTHER_SITES})
        keys = [*(["site"] if within_sites else []), *keys]
        return table, table.groupby(keys).ngroup().to_numpy() if keys else np.zeros(len(table))

    def _widened(self, scope: Scope, value: float, drawn: np.ndarray) -> np.ndarray:
        """Resamples `drawn`, of held-out patients further from `value`: each patient trained the models of others as well."""
        if scope.folds is None or not np.isfinite(drawn).any():
            return drawn
        chance = value if self.primary.chance is None else self.primary.chance
        return value + (drawn - value) * np.sqrt(inflation(value, float(np.nanvar(drawn)), None, chance))


def at_rows(weights: np.ndarray, scope: Scope, table: pd.DataFrame) -> np.ndarray:
    """Weights (resamples, patients) of the patients of `scope` at the rows of `table`, where a patient may have several."""
    return weights[:, pd.Index(scope.table["patient_id"]).get_indexer(table["patient_id"])]


def scope_columns(kind: Endpoint, scope: Scope) -> dict[str, Any]:
    """Columns that every row of a scope has."""
    return {
        "trained_on": scope.trained_on,
        "split": scope.split,
        "site": scope.site,
        "patients": len(scope.table),
        "positives": kind.positives(scope.table),
        "models": scope.models,
    }


ENDPOINTS: Registry[type[Endpoint]] = Registry("endpoint kind")
