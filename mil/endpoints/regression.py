"""A number: Spearman's correlation of predicted and observed, the error, and whether predictions are on the right scale.

Spearman's is the primary one: it is what ranking is for the other kinds, 0 by chance whatever the cohort, and bounded, where one
patient far out can move R² without limit; and, formed site by site, it forgives that sites lie on different scales, which R²,
the mean error and the slope beside it do not. Held-out patients of a site are ranked together, and each rank is taken less the mean of its
fold: a fold of low numbers leaves a training set of high ones, so that models which know nothing had -0.03 to -0.07. The mean
of the folds' correlations would be too low for folds of few patients.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.endpoints.cells import numbers
from mil.endpoints.endpoint import ENDPOINTS, Endpoint
from mil.endpoints.measures import Measure
from mil.endpoints.target import number_of
from mil.statistics.arms import Scope
from mil.statistics.concordance import pairs_in_order

if TYPE_CHECKING:
    from torch import Tensor

    from mil.slides.sheet import Cohort

FEWEST = 3  # patients of whom a correlation can be formed


@ENDPOINTS.register("regression")
class Regression(Endpoint):
    """A number: one logit, half the squared error in deviations of the training patients; scores in the column's unit."""

    name = "regression"
    scaled = True
    strata = ("site",)
    quantity = "predicted"
    better = "puts patients in the right order better than chance would"
    worse = "puts patients in the wrong order, worse than chance would"
    watched = "share of pairs in order"
    measured = (
        "Of a number the measure is Spearman's rank correlation of predicted and observed, on several sites the mean of the sites weighted by "
        "their patients, ranks of held-out patients less the mean of their fold; beside it mean absolute error, mean error, R² and the slope of observed on predicted."
    )
    pairs = "patients set against those of the same site (mean of the sites, weighted by patients)"
    primary = Measure("spearman", "Spearman's ρ", lambda *given: spearman(*given), "correlation", 0.0)
    further = (
        Measure("mae", "Mean absolute error", lambda *given: absolute_error(*given), "positive"),
        Measure("mean_error", "Mean error", lambda *given: mean_error(*given), "real", 0.0),
        Measure("r2", "R²", lambda *given: r_squared(*given), "real", 0.0),
        Measure("calibration_slope", "Slope", lambda *given: slope(*given), "real"),
    )

    def read(self, cohort: "Cohort") -> pd.DataFrame:
        """Numbers."""
        return numbers(cohort, self.spec.column).to_frame("label")

    @property
    def meaning(self) -> str:
        """Any number."""
        return "a number"

    def losses(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Half the squared error."""
        return (logits[..., 0] - targets[..., 0]) ** 2 / 2 * present

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Share of the pairs with different targets that are in the right order."""
        return pairs_in_order(targets[:, 0], logits[:, 0])

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        return [number_of(cells[0], patient, "label")]

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """Finite numbers."""
        return {name: np.isfinite(pd.to_numeric(table[name], errors="coerce")) for name in ("label", "score")}

    def labels_of(self, table: pd.DataFrame) -> np.ndarray:
        """Numbers (n,)."""
        return table["label"].to_numpy(dtype=float)

    def undefined(self, table: pd.DataFrame) -> str:
        """Too few patients, or all alike."""
        if len(table) < FEWEST:
            return f"{len(table)} patients are too few"
        alike = [name for name in ("label", "score") if table[name].nunique() < 2]
        return f"all patients have the same {alike[0]}" if alike else ""

    def by_model(self, scope: Scope) -> pd.DataFrame | None:
        """A fold of low numbers leaves a training set of high ones."""
        return scope.folds

    def groups_of(self, scope: Scope, within_sites: bool = True) -> tuple[pd.DataFrame, np.ndarray]:
        """Of held-out patients two groups (n, 2): in which they are ranked (site and repeat), and the fold in it."""
        table, groups = super().groups_of(scope, within_sites)
        if self.by_model(scope) is None:
            return table, groups
        ranked = table.groupby([*(["site"] if within_sites else []), "repeat"]).ngroup().to_numpy()
        return table, np.stack([ranked, groups], axis=1)

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Mean of the groups' correlations, weighted by their patients; a group without one is left out."""
        return self.within_same(labels, [scores], weights, groups)[0]

    def within_same(
        self, labels: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray, groups: np.ndarray
    ) -> list[np.ndarray]:
        """The same of several scores; a group where one of them does not vary is left out of all, in that resample."""
        totals, patients = np.zeros((len(scores), len(weights))), np.zeros(len(weights))
        ranked, folds = groups.T if groups.ndim == 2 else (groups, groups)
        for group in np.unique(ranked):
            mask = ranked == group
            values = np.stack([spearman(labels[mask], score[mask], weights[:, mask], folds[mask]) for score in scores])
            there = np.isfinite(values).all(axis=0)
            totals += np.where(there, values, 0) * mask.sum()
            patients += there * mask.sum()
        with np.errstate(invalid="ignore"):
            return list(totals / patients)


def spearman(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, folds: np.ndarray | None = None
) -> np.ndarray:
    """Spearman's correlation of each resample, mean ranks for ties; nan where one does not vary or patients are too few.

    With several `folds` (n,) it is the partial one, given the fold: ranks are taken less their fold's mean.
    """
    if len(labels) < FEWEST:
        return np.full(len(weights), np.nan)
    first, second = _ranks(labels, weights), _ranks(scores, weights)
    if folds is not None:
        distinct, fold = np.unique(folds, return_inverse=True)
        members = np.eye(len(distinct))[fold]
        number = np.maximum(weights @ members, 1)
        first, second = (values - ((weights * values) @ members / number)[:, fold] for values in (first, second))
    return _correlation(first, second, weights)


def absolute_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean distance of predicted and observed."""
    return weights @ np.abs(scores - labels) / weights.sum(axis=1)


def mean_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of predicted less observed."""
    return weights @ (scores - labels) / weights.sum(axis=1)


def r_squared(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 less the squared error over that of the patients' own mean: 0 is what saying the mean reaches, below 0 is worse."""
    mean = (weights @ labels / weights.sum(axis=1))[:, None]
    spread = (weights * (labels - mean) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, 1 - weights @ (scores - labels) ** 2 / spread, np.nan)


def slope(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of observed on predicted (least squares): 1 is ideal, below 1 predictions are too far apart."""
    total = weights.sum(axis=1, keepdims=True)
    predicted, observed = (values - (weights @ values)[:, None] / total for values in (scores, labels))
    spread = (weights * predicted**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = spread > 1e-24 * (weights @ scores**2)  # below is rounding, in whatever unit
        return np.where(varies, (weights * predicted * observed).sum(axis=1) / spread, np.nan)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank (resamples, n) of every patient among those drawn."""
    distinct, inverse = np.unique(values, return_inverse=True)
    counted = np.zeros((len(weights), len(distinct)))
    np.add.at(counted.T, inverse, weights.T)
    return (np.cumsum(counted, axis=1) - counted / 2)[:, inverse]


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each resample of values (resamples, n)."""
    total = weights.sum(axis=1, keepdims=True)
    deviations, other = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second))
    spreads = (weights * deviations**2).sum(axis=1) * (weights * other**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spreads > 1e-12, (weights * deviations * other).sum(axis=1) / np.sqrt(spreads), np.nan)
