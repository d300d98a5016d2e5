"""Scores and labels -> average precision, Brier score, and what a decision threshold makes of them, on weighted patients."""

import numpy as np

from mil.metrics.ranking import by_score
from mil.metrics.registry import METRICS


@METRICS.register("auprc")
def auprc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision: the sum of precision times the rise in recall over distinct scores (as scikit-learn's)."""
    positive, negative = by_score(labels, scores, weights)
    found = np.cumsum(positive, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(found / (found + np.cumsum(negative, axis=1)))
        return (precision * positive).sum(axis=1) / positive.sum(axis=1)


@METRICS.register("brier")
def brier(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared distance of score and label."""
    return weights @ (scores - labels) ** 2 / weights.sum(axis=1)


def sensitivity(labels: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean vote (share of models that call the patient positive, 0-1) over positives."""
    return _mean_where(labels == 1, votes, weights)


def specificity(labels: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One less the mean vote over negatives."""
    return 1 - _mean_where(labels == 0, votes, weights)


def balanced_accuracy(labels: np.ndarray, votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity."""
    return (sensitivity(labels, votes, weights) + specificity(labels, votes, weights)) / 2


def _mean_where(chosen: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    part = weights[:, chosen]
    with np.errstate(invalid="ignore"):
        return part @ values[chosen] / part.sum(axis=1)
