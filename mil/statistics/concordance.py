"""Scores and times (or numbers) -> the share of pairs in the right order, on weighted patients."""

from collections.abc import Iterator

import numpy as np

AT_ONCE = 500  # patients that are compared with all others in one step, so that memory does not grow with pairs


def c_index(times: np.ndarray, events: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's c of each resample (weights (b, n)): of the pairs whose order is known, the share in which the higher score lives longer.

    Ties in the score count one half; of two equal times, one with an event, the censored patient lived longer.
    """
    right, known = np.zeros((2, len(weights)))
    for later in blocks(len(times)):
        first = known_order(times, events, later)
        higher = (scores[:, None] < scores[later]) + 0.5 * (scores[:, None] == scores[later])
        right += ((weights @ (first * higher)) * weights[:, later]).sum(axis=1)
        known += ((weights @ first) * weights[:, later]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / known


def blocks(patients: int) -> Iterator[slice]:
    """`patients` in parts of `AT_ONCE`."""
    for start in range(0, patients, AT_ONCE):
        yield slice(start, start + AT_ONCE)


def known_order(times: np.ndarray, events: np.ndarray, later: slice = slice(None)) -> np.ndarray:
    """(n, patients of `later`) bool: the patient of the row is known to have had the event before that of the column."""
    return events[:, None] & ((times[:, None] < times[later]) | ((times[:, None] == times[later]) & ~events[later]))


def harrell(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's c of a risk; labels (n, 2) are time and event, and the higher score should have the event sooner."""
    return c_index(labels[:, 0], labels[:, 1] > 0, -scores, weights)


def harrell_within(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The same over the pairs of one group (site, fold) whose order is known; nan without such a pair."""
    right, known = np.zeros(len(weights)), np.zeros(len(weights))
    for group in np.unique(groups):
        mask = groups == group
        pairs = known_pairs(labels[mask], weights[:, mask])
        right += np.nan_to_num(harrell(labels[mask], scores[mask], weights[:, mask])) * pairs
        known += pairs
    with np.errstate(invalid="ignore"):
        return right / known


def known_pairs(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Number of the pairs whose order is known, in each resample."""
    times, events, pairs = labels[:, 0], labels[:, 1] > 0, np.zeros(len(weights))
    for later in blocks(len(times)):
        pairs += ((weights @ known_order(times, events, later)) * weights[:, later]).sum(axis=1)
    return pairs


def pairs_in_order(numbers: np.ndarray, scores: np.ndarray) -> float:
    """Share of the pairs with different `numbers` (n,) that `scores` (n,) put in the same order; nan without such a pair."""
    return float(c_index(numbers, np.ones(len(numbers), bool), scores, np.ones((1, len(numbers))))[0])
