"""Two classes: AUROC with DeLong's variance, further measures of a probability, decisions at thresholds chosen on inner folds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from mil.endpoints import curves
from mil.endpoints.bounds import metric_row
from mil.endpoints.cells import yes_or_no
from mil.endpoints.endpoint import ENDPOINTS, Endpoint, scope_columns
from mil.endpoints.measures import Measure, Pair
from mil.endpoints.target import number_of
from mil.rng import rng
from mil.statistics import calibration, classification, decision, delong, held_out, intervals, ranking
from mil.statistics.arms import APART, ENSEMBLE, GROUPS, Scope, scopes
from mil.statistics.bootstrap import point
from mil.statistics.folds import fold_aurocs
from mil.statistics.intervals import INTERVALS
from mil.statistics.measures import METRICS
from mil.statistics.thresholds import choose_thresholds, vote

if TYPE_CHECKING:
    from torch import Tensor

    from mil.config import MetricsSpec
    from mil.slides.sheet import Cohort

# DeLong's plain normal interval (the one pROC gives) covers 91-94 % with 40-60 patients, on the logit scale 95-96 %; below ten
# patients of a class neither holds, and Newcombe's does, which asks for the class sizes only (benchmarks/coverage.py).
PRIMARY, FEW, FEWEST = "DeLong, logit scale", "Newcombe", delong.FEWEST
EXCHANGED, EXCHANGE_BELOW = "permutation of the two models, paired", 20
DECISIONS = ("sensitivity", "specificity", "balanced_accuracy")
REGISTERED = (ranking, classification, calibration)  # importing them fills METRICS


@ENDPOINTS.register("binary")
class Binary(Endpoint):
    """Yes or no: the label is 0 or 1, one logit, cross-entropy, the score is a probability, AUROC."""

    name, classes = "binary", 2
    thresholds = two_classes = True
    error, largest_error = "squared error of the probability (Brier score)", 1.0
    primary = Measure("auroc", "AUROC", ranking.auroc, chance=0.5)
    quantity = "probability"
    better = "ranks positive patients above negative ones better than chance would"
    worse = "ranks positive patients below negative ones, worse than chance would"
    outcome, having = "positive", "positive for"
    watched = "AUROC"

    def read(self, cohort: "Cohort") -> pd.DataFrame:
        """0 or 1."""
        return yes_or_no(cohort, self.spec, self.spec.column).to_frame("label")

    def losses(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Cross-entropy of the logistic function."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits, targets, reduction="none").squeeze(-1) * present

    def errors(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Squared error of the probability: unlike the loss it does not grow without end with a model that is sure and wrong."""
        return ((logits.sigmoid() - targets) ** 2).squeeze(-1) * present

    def scores(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """`score`: probability of yes."""
        return {"score": expit(logits[:, 0].astype(np.float64))}

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """AUROC."""
        return ranking.auroc_of(logits[:, 0], targets[:, 0] > 0.5)

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        return [number_of(cells[0], patient, "label", allowed=(0.0, 1.0))]

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """0 or 1, a probability."""
        return {"label": table["label"].isin([0, 1]), "score": table["score"].between(0, 1)}

    def undefined(self, table: pd.DataFrame) -> str:
        """Both classes are needed."""
        return "" if delong.both_classes(table["label"].to_numpy()) else "patients of one class only"

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """AUROC over pairs of the same group."""
        return ranking.auroc_within(labels, scores, weights, groups)

    def interval(self, scope: Scope, spec: "MetricsSpec") -> tuple[float, float, float, str]:
        """AUROC within sites: of held-out patients over pairs of one fold, else DeLong's."""
        if not scope.has_pairs:
            return np.nan, np.nan, np.nan, "not defined: no site has patients of both classes"
        if scope.folds is not None:
            return held_out.interval(held_out.pairs_of(scope.folds), spec.confidence)
        return fixed_interval(scope.labels, scope.scores, scope.sites, spec.confidence)

    def rows(self, scope: Scope, spec: "MetricsSpec") -> Iterator[dict[str, Any]]:
        """Every metric of one scope."""
        labels, scores = scope.labels, scope.scores
        if not delong.both_classes(labels):
            for name in ("auroc", "auroc_within_sites")[: 1 + (scope.site in GROUPS)]:
                yield metric_row(name, np.nan, np.nan, np.nan, "not defined: patients of one class only")
            return
        everywhere = np.zeros(len(labels))
        if scope.folds is not None:
            pairs = held_out.pairs_of(scope.folds, within_sites=False)
            yield metric_row("auroc", *held_out.interval(pairs, spec.confidence))
        else:
            yield metric_row("auroc", *fixed_interval(labels, scores, everywhere, spec.confidence))
        share = int(labels.sum()) / len(labels)
        yield metric_row("prevalence", share, *intervals.wilson(share, len(labels), spec.confidence), "Wilson")
        for name in INTERVALS:
            bounds = INTERVALS[name](labels, scores, spec.confidence)
            yield metric_row(name, point(METRICS[name], labels, scores), bounds.low, bounds.high, bounds.method)
        for threshold in spec.decision_thresholds:
            value = point(partial(decision.net_benefit, threshold=threshold), labels, scores)
            bounds = intervals.net_benefit(labels, scores, threshold, spec.confidence)
            yield metric_row(f"net_benefit_{threshold:g}", value, bounds.low, bounds.high, bounds.method)
        if scope.site in GROUPS:
            yield metric_row("auroc_within_sites", *self.interval(scope, spec))

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[dict[str, Any]]:
        """Sensitivity, specificity and balanced accuracy, where inner predictions are given."""
        if inner is not None:
            yield from _decisions(self, predictions, inner, spec)

    def curves(
        self, scope: Scope, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[pd.DataFrame]:
        """ROC, precision and recall, calibration, net benefit."""
        return curves.of_probabilities(scope, spec)

    def folds(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """AUROC."""
        return fold_aurocs(predictions).rename(columns={"auroc": "value"})

    def compared(self, first: Scope, second: Scope, spec: "MetricsSpec") -> Pair | None:
        """AUROC within sites of both. Held out: pairs of one fold. Else DeLong's test, of few patients a permutation test."""
        if not first.has_pairs:
            return None
        if first.folds is not None and second.folds is not None:
            keys = ["patient_id", *APART]
            folds = [table.merge(other[keys], on=keys) for table, other in permutations((first.folds, second.folds))]
            pairs = [held_out.pairs_of(table) for table in folds]
            tested, method = held_out.paired(pairs[0], pairs[1], spec.confidence)
            return Pair((pairs[0].auroc, pairs[1].auroc), tested, method)
        labels, sites, scores = first.labels, first.sites, (first.scores, second.scores)
        area, other = delong.within(labels, np.stack(scores), sites).auroc
        if min(delong.numbers_in_pairs(labels, sites)) >= EXCHANGE_BELOW:
            tested = delong.paired(labels, *scores, confidence=spec.confidence, strata=sites)
            return Pair((area, other), tested, "DeLong, paired")
        drawn = rng(spec.seed, "exchange", *first.table["patient_id"])
        tested = delong.exchanged(labels, *scores, sites, drawn, spec.bootstrap, spec.confidence)
        return Pair((area, other), tested, EXCHANGED)


def fixed_interval(
    labels: np.ndarray, scores: np.ndarray, sites: np.ndarray, confidence: float
) -> tuple[float, float, float, str]:
    """AUROC within sites of models that none of the patients trained, its interval and method.

    DeLong's variance on the logit scale; below `FEWEST` patients of a class Newcombe's at one site, and none over several.
    """
    numbers = delong.numbers_in_pairs(labels, sites)
    placed = delong.within(labels, scores, sites)
    area, variance = float(placed.auroc[0]), float(placed.covariance[0, 0])
    if min(numbers) >= FEWEST:
        interval = delong.logit_bounds(area, variance, *numbers, confidence)
        return *interval, PRIMARY if 0 < interval[0] < 1 and variance > 0 else held_out.NO_VARIANCE
    if len(np.unique(sites)) > 1:
        return (
            area,
            np.nan,
            np.nan,
            f"no interval: {numbers[0]} positive and {numbers[1]} negative patients; {FEWEST} of each needed",
        )
    return area, *delong.newcombe_interval(area, *numbers, confidence), FEW


def _decisions(
    kind: Endpoint, predictions: pd.DataFrame, inner: pd.DataFrame, spec: "MetricsSpec"
) -> Iterator[dict[str, Any]]:
    """Rows of the metrics that need a threshold; the ensemble has none."""
    voted = vote(predictions, choose_thresholds(inner))
    if voted.empty:
        return
    for scope in scopes(voted.assign(score=voted["vote"])):
        if scope.trained_on == ENSEMBLE or not delong.both_classes(scope.labels):
            continue
        votes = [scope.scores[scope.labels == label] for label in (1, 0)]
        bounds = [intervals.votes(right, spec.confidence) for right in (votes[0], 1 - votes[1])]
        values = float(votes[0].mean()), 1 - float(votes[1].mean())
        both = intervals.mean_of_two(*zip(values, bounds, strict=True))
        for name, value, interval in zip(DECISIONS, (*values, sum(values) / 2), (*bounds, both), strict=True):
            row = metric_row(name, value, interval.low, interval.high, f"{interval.method}; threshold on inner folds")
            yield {**scope_columns(kind, scope), **row}
