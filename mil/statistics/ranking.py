"""Scores and labels -> how well they rank: AUROC, AUPRC and the curves behind them, on weighted patients."""

import numpy as np
import pandas as pd

from mil.statistics.measures import METRICS


@METRICS.register("auroc")
def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each resample (weights (b, n)); ties count one half, one class is nan."""
    positive, negative = by_score(labels, scores, weights)
    above = np.cumsum(positive, axis=1) - positive / 2
    with np.errstate(invalid="ignore"):
        return (above * negative).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis of `values` (n,) or (k, n); equal values get the mean of their ranks.

    By pandas: the same as `scipy.stats.rankdata`, without the second that importing `scipy.stats` takes.
    """
    return pd.DataFrame(np.atleast_2d(values).T).rank().to_numpy().T.reshape(values.shape)


def auroc_of(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of `scores` (n,); `positive` (n,) of booleans; nan without both classes or with a score that is nan."""
    if positive.all() or not positive.any() or np.isnan(scores).any():
        return float("nan")
    return float(auroc(positive, scores, np.ones((1, len(scores))))[0])


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate) from (0, 0) to (1, 1), one step a distinct score."""
    positive, negative = by_score(labels, scores, np.ones((1, len(labels))))
    rise = [np.concatenate([[0.0], np.cumsum(part[0]) / part[0].sum()]) for part in (negative, positive)]
    return rise[0], rise[1]


def auroc_within(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """AUROC over the pairs of a positive and a negative of the same group (site): telling sites apart earns nothing."""
    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for group in np.unique(groups):
        chosen = groups == group
        if len(np.unique(labels[chosen])) < 2:
            continue
        part = weights[:, chosen]
        number = part[:, labels[chosen] == 1].sum(axis=1) * part[:, labels[chosen] == 0].sum(axis=1)
        wins += np.nan_to_num(auroc(labels[chosen], scores[chosen], part)) * number
        pairs += number
    with np.errstate(invalid="ignore"):
        return wins / pairs


def pairs_within(scores: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """(2, k): pairs of a positive and a negative of one stratum in the right order (ties one half), and all such pairs.

    `scores` and `labels` (k, n) are k rankings of the same patients, `strata` (n,) their sites.
    """
    pairs = np.zeros((2, len(scores)))
    for stratum in np.unique(strata):
        chosen = strata == stratum
        positives = labels[:, chosen].sum(axis=1)
        ranks = midranks(scores[:, chosen])
        pairs[0] += (ranks * labels[:, chosen]).sum(axis=1) - positives * (positives + 1) / 2
        pairs[1] += positives * (chosen.sum() - positives)
    return pairs


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), one step a distinct score from the highest."""
    positive, negative = by_score(labels, scores, np.ones((1, len(labels))))
    true_positives = np.cumsum(positive[0])
    return true_positives / true_positives[-1], true_positives / (true_positives + np.cumsum(negative[0]))


def by_score(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and of negatives at each distinct score, highest first: two (b, distinct scores)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weights, is_positive = weights[:, order], labels[order] == 1
    return (
        np.add.reduceat(weights * is_positive, starts, axis=1),
        np.add.reduceat(weights * ~is_positive, starts, axis=1),
    )
