"""What every kind of endpoint has: how its predictions are read, by what it is measured, and what chance would reach."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mil.config import EndpointSpec, MetricsSpec
from mil.endpoints.kinds.bounds import Scale
from mil.registry import Registry
from mil.statistics.arms import PREDICTED, Scope, check_patients, refuse
from mil.statistics.bootstrap import Metric, bootstrap_weights
from mil.statistics.differences import Difference, difference_of
from mil.tables import require_columns

PAIRED_BOOTSTRAP = "patient bootstrap, paired"


@dataclass(frozen=True)
class Measure:
    """A number that says how well scores fit labels.

    `function` takes labels (n,) (survival: time and event, (n, 2)), scores (n,) (several classes: (n, classes)) and weights
    (resamples, n), and gives a value a resample, nan where it is not defined.
    """

    name: str
    title: str
    function: Metric
    scale: Scale = "share"
    chance: float | None = None
    """What a model that knows nothing reaches; none where that depends on the patients."""


@dataclass(frozen=True)
class Pair:
    """Two scores' primary measure on the same patients, and the test of their difference."""

    values: tuple[float, float]
    tested: Difference
    method: str


class Kind:
    """Base of the kinds. `primary` is the measure that arms are compared by."""

    name: str
    primary: Measure
    further: tuple[Measure, ...] = ()
    strata: tuple[str, ...] = ("site", "label")
    """Patients are drawn within these."""
    columns: tuple[str, ...] = PREDICTED
    better, worse = "", ""
    """What a model does that is better (worse) than chance, as in `FedAvg ...`."""
    how = ""
    """How the primary measure's intervals are made, in words."""
    counts = ""
    """What `positives` are, in words; '' where there is nothing to count."""
    watched = ""
    """What the endpoint's metric of the round table is, in words."""
    pairs = "pairs of patients of the same site"
    """What the primary measure goes over on a group of sites."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec

    def checked(self, table: pd.DataFrame, where: str) -> pd.DataFrame:
        """Predictions with labels as numbers; raises for a column that is missing and a value that cannot be."""
        require_columns(table, self.columns, where)
        table = self.coded(table)
        refuse(table, self.valid(table), where, self.name)
        return check_patients(table, where)

    def coded(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with labels as numbers."""
        return table

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """By column, whether a row's value can be."""
        raise NotImplementedError

    def labels(self, table: pd.DataFrame) -> np.ndarray:
        """Labels as measures take them."""
        return table["label"].to_numpy()

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Scores as measures take them."""
        return table["score"].to_numpy(dtype=float)

    def positives(self, table: pd.DataFrame) -> int | None:
        """Patients with the outcome (events); none where there is no such thing."""
        return None

    def undefined(self, table: pd.DataFrame) -> str:
        """Why the primary measure does not exist for these patients; '' where it does."""
        raise NotImplementedError

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """The primary measure, patients set against those of their own group (site) only."""
        raise NotImplementedError

    def has_within(self, table: pd.DataFrame) -> bool:
        """Whether the primary measure within sites exists for these patients."""
        found = self.within(self.labels(table), self.scores(table), np.ones((1, len(table))), table["site"].to_numpy())
        return bool(np.isfinite(found[0]))

    def interval(self, scope: Scope, spec: MetricsSpec) -> tuple[float, float, float, str]:
        """The primary measure within sites, with its interval, and how that was made or why there is none."""
        raise NotImplementedError

    def weights(self, table: pd.DataFrame, spec: MetricsSpec) -> np.ndarray:
        """Resamples (resamples, n) of these patients."""
        return bootstrap_weights(table, spec, self.strata)

    def rows(self, scope: Scope, spec: MetricsSpec) -> Iterator[dict[str, Any]]:
        """metric, value, low, high and method of every measure on one scope."""
        raise NotImplementedError

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: MetricsSpec
    ) -> Iterator[dict[str, Any]]:
        """Rows that rest on more than one scope's mean scores: the primary measure over the folds."""
        raise NotImplementedError

    def compared(self, first: Scope, second: Scope, spec: MetricsSpec) -> Pair | None:
        """The primary measure of two scopes of the same patients and the test of their difference; None where it is not defined.

        Patients of one site are set against each other. Held-out patients are tested fold by fold, since training sets overlap;
        others by a paired bootstrap, the models being given.
        """
        raise NotImplementedError


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, confidence: float, is_share: bool, inflation: float = 1.0
) -> Difference:
    """Difference of two measures, the patients as they are first and then their resamples; normal, by its deviation there.

    The variance is taken `inflation` times.
    """
    drawn = (first - second)[1:]
    drawn = drawn[np.isfinite(drawn)]
    difference = float(first[0] - second[0])
    if len(drawn) < 0.95 * (len(first) - 1):
        return Difference(difference, np.nan, np.nan, np.nan, np.nan)
    variance = float(drawn.var()) * inflation
    return difference_of(difference, variance if variance > 1e-12 else 0.0, confidence, is_share=is_share)


def scope_columns(kind: Kind, scope: Scope) -> dict[str, Any]:
    """What every row of a scope states."""
    return {
        "trained_on": scope.trained_on,
        "split": scope.split,
        "site": scope.site,
        "patients": len(scope.table),
        "positives": kind.positives(scope.table),
        "models": scope.models,
    }


KINDS: Registry[type[Kind]] = Registry("endpoint kind")


def build_kind(spec: EndpointSpec | None = None) -> Kind:
    """The kind of an endpoint; two classes where none is given."""
    return KINDS[(spec or EndpointSpec()).kind](spec or EndpointSpec())
