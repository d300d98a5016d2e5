"""Scores and labels -> average precision and Brier score, on weighted patients."""

import numpy as np

from mil.statistics.measures import METRICS
from mil.statistics.ranking import by_score


@METRICS.register("auprc")
def auprc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision: the sum of precision times the rise in recall over distinct scores (as scikit-learn's)."""
    positive, negative = by_score(labels, scores, weights)
    true_positives = np.cumsum(positive, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true_positives / (true_positives + np.cumsum(negative, axis=1)))
        return (precision * positive).sum(axis=1) / positive.sum(axis=1)


@METRICS.register("brier")
def brier(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared distance of score and label."""
    return weights @ (scores - labels) ** 2 / weights.sum(axis=1)
