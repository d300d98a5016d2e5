"""Scores and labels -> AUROC, its variance and covariances (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837).

Placement values come from mid-ranks, as in Sun and Xu 2014 (IEEE Signal Processing Letters 21:1389), so that ties count
one half and nothing of size positives x negatives is formed.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from mil.errors import MilError
from mil.statistics.differences import Bounds, Difference, agreeing, difference_of
from mil.statistics.intervals import normal_quantile
from mil.statistics.ranking import midranks, pairs_within

FEWEST = 10
"""Patients of a class below which DeLong's variance is no use for an interval, and Newcombe's is."""
LARGEST = 0.25
"""Variance of a share is at most this: of a site's only patient of a class it is not known."""


@dataclass(frozen=True)
class Placements:
    """What DeLong needs of k scores on the same patients: AUROCs (k,) and their covariance matrix (k, k)."""

    auroc: np.ndarray
    covariance: np.ndarray


def both_classes(labels: np.ndarray) -> bool:
    """Whether `labels` (0/1) hold at least one of each."""
    return bool(np.any(labels == 1) and np.any(labels == 0))


def placements(labels: np.ndarray, scores: np.ndarray, of_one: float = np.nan) -> Placements:
    """AUROCs and covariance of `scores` (k, patients) on the same 0/1 `labels`. One patient of a class has the variance `of_one`."""
    labels = np.asarray(labels)
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if not both_classes(labels):
        raise MilError(f"AUROC needs patients of both classes; all {len(labels)} are of one")
    if not np.isfinite(scores).all():
        raise MilError("AUROC needs finite scores; at least one is blank or infinite")
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    everyone = midranks(np.concatenate([positive, negative], axis=1))
    # share of negatives below each positive, and of positives below each negative; ties count one half
    of_positive = (everyone[:, :m] - midranks(positive)) / n
    of_negative = (everyone[:, m:] - midranks(negative)) / m
    covariance = _covariance(of_positive, of_one) / m + _covariance(of_negative, of_one) / n
    return Placements(of_positive.mean(axis=1), covariance)


def within(labels: np.ndarray, scores: np.ndarray, strata: np.ndarray) -> Placements:
    """AUROCs over pairs of the same stratum (site), and their covariance: strata weighted by their number of pairs.

    Strata are independent, so covariances add with squared weights. A stratum of one class has no pair and is left out; a class of
    one patient has the largest possible variance, so that one small site leaves the others their interval and test.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    members = [rows for rows in members if both_classes(labels[rows])]
    if not members:
        raise MilError("AUROC within sites needs a site with patients of both classes")
    of_one = LARGEST if len(members) > 1 else np.nan
    placed = [placements(labels[rows], scores[:, rows], of_one) for rows in members]
    pairs = np.array([np.sum(labels[rows] == 1) * np.sum(labels[rows] == 0) for rows in members], dtype=float)
    # Divided in the end, so that AUROCs of 1 in every stratum are 1 together, to the last bit.
    return Placements(
        np.tensordot(pairs, [part.auroc for part in placed], 1) / pairs.sum(),
        np.tensordot(pairs**2, [part.covariance for part in placed], 1) / pairs.sum() ** 2,
    )


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties one half."""
    return float(placements(labels, scores).auroc[0])


def interval(labels: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """AUROC with DeLong's normal interval, cut at 0 and 1 (as pROC does). nan bounds where there is no variance."""
    placed = placements(labels, scores)
    area, half = float(placed.auroc[0]), normal_quantile(confidence) * float(np.sqrt(placed.covariance[0, 0]))
    return (area, max(area - half, 0.0), min(area + half, 1.0)) if half > 0 else (area, np.nan, np.nan)


def logit_interval(
    labels: np.ndarray, scores: np.ndarray, confidence: float = 0.95, strata: np.ndarray | None = None
) -> tuple[float, float, float]:
    """AUROC with DeLong's variance on the logit scale: stays within 0-1 and keeps its level with few patients; within `strata` if given.

    Where DeLong has no variance (perfect separation, one patient of a class) the bounds are Newcombe's.
    """
    placed = placements(labels, scores) if strata is None else within(labels, scores, strata)
    numbers = numbers_in_pairs(labels, strata)
    return logit_bounds(float(placed.auroc[0]), float(placed.covariance[0, 0]), *numbers, confidence)


def logit_bounds(
    area: float, variance: float, positives: int, negatives: int, confidence: float
) -> tuple[float, float, float]:
    """An AUROC of known variance with its interval on the logit scale; Newcombe's where the variance is no use."""
    if not 0 < area < 1 or not variance > 0:
        return area, *newcombe_interval(area, positives, negatives, confidence)
    centre, half = np.log(area / (1 - area)), normal_quantile(confidence) * np.sqrt(variance) / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return area, float(low), float(high)


def newcombe_interval(area: float, positives: int, negatives: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score-like bounds of an AUROC from its value and the class sizes only (Newcombe 2006, Stat Med 25:559, method 5)."""
    size, z = (positives + negatives) / 2, normal_quantile(confidence)

    def excess(theta: float) -> float:
        spread = 1 + (size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(theta - area) - z * np.sqrt(theta * (1 - theta) * spread / (positives * negatives))

    low = 0.0 if area == 0 else float(scipy.optimize.brentq(excess, 0.0, area - 1e-12))
    high = 1.0 if area == 1 else float(scipy.optimize.brentq(excess, area + 1e-12, 1.0))
    return low, high


def paired(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    confidence: float = 0.95,
    strata: np.ndarray | None = None,
) -> Difference:
    """AUROC of `first` less that of `second` on the same patients, with DeLong's paired test; within `strata` if given.

    Two scores that rank these patients alike have p = 1 and no interval, because they may rank other patients differently. Where both
    separate the classes, their intervals are joined.
    """
    both = np.stack([first, second])
    placed = placements(labels, both) if strata is None else within(labels, both, strata)
    contrast = np.array([1.0, -1.0])
    difference, variance = float(contrast @ placed.auroc), float(contrast @ placed.covariance @ contrast)
    is_known = variance > 1e-13 * np.trace(placed.covariance)  # below it is rounding
    if not is_known and (np.isnan(variance) or difference or placed.auroc[0] in (0.0, 1.0)):
        bounds = _joined(placed, labels, strata)
        p = 1.0 if difference == 0 else np.nan
        return Difference(difference, *bounds(confidence), 0.0 if p == 1 else np.nan, p, bounds)
    return difference_of(difference, variance if is_known else 0.0, confidence=confidence)


def exchanged(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    strata: np.ndarray,
    generator: np.random.Generator,
    resamples: int,
    confidence: float = 0.95,
) -> Difference:
    """`paired` for few patients: the test permutes which of the two scores' ranks within the stratum is whose, patient by patient.

    Bandos, Rockette and Gur 2005 (Stat Med 24:2873). All exchanges are formed where they are no more than `resamples`. The interval
    joins those of both AUROCs with the correlation of their placements (Zou 2007, Psychol Methods 12:399), and agrees with the test.
    """
    placed = within(labels, np.stack([first, second]), strata)
    ranks, areas = np.empty((2, len(labels))), placed.auroc
    for stratum in np.unique(strata):
        rows = strata == stratum
        ranks[:, rows] = midranks(np.stack([first[rows], second[rows]]))
    if 2 ** len(labels) <= resamples:
        swapped = (np.arange(1, 2 ** len(labels))[:, None] >> np.arange(len(labels))) & 1 == 1
    else:
        swapped = generator.random((resamples, len(labels))) < 0.5
    both = [np.where(swapped, ranks[row], ranks[1 - row]) for row in (1, 0)]
    drawn = np.subtract(*(within_areas(labels, scores, strata) for scores in both))
    difference = float(areas[0] - areas[1])
    p = (1 + int(np.sum(np.abs(drawn) >= abs(difference) - 1e-12))) / (1 + len(drawn))
    if not drawn.any() and areas[0] not in (0.0, 1.0):
        return Difference(difference, np.nan, np.nan, np.nan, p)  # they rank alike
    bounds = agreeing(_joined(placed, labels, strata), difference, p)
    return Difference(difference, *bounds(confidence), np.nan, p, bounds)


def within_areas(labels: np.ndarray, scores: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """AUROC over pairs of the same stratum of each of many `scores` (k, patients), as (k,); see `within`."""
    wins, pairs = pairs_within(scores, np.broadcast_to(labels, scores.shape), strata)
    return wins / pairs


def numbers_in_pairs(labels: np.ndarray, strata: np.ndarray | None) -> tuple[int, int]:
    """Positives and negatives of strata that have both; none: of all."""
    if strata is not None:
        both = [stratum for stratum in np.unique(strata) if both_classes(labels[strata == stratum])]
        labels = labels[np.isin(strata, both)]
    return int(np.sum(labels == 1)), int(np.sum(labels == 0))


def _joined(placed: Placements, labels: np.ndarray, strata: np.ndarray | None) -> Bounds:
    """Intervals of two AUROCs joined to that of their difference; without variance as if they were of different patients, so too wide.

    None below `FEWEST` patients of a class in several strata, where no interval of one AUROC holds either.
    """
    positives, negatives = numbers_in_pairs(labels, strata)
    few = min(positives, negatives) < FEWEST
    if few and strata is not None and len(np.unique(strata)) > 1:
        return lambda _: (np.nan, np.nan)
    spread = float(np.sqrt(placed.covariance[0, 0] * placed.covariance[1, 1]))
    alike = float(placed.covariance[0, 1]) / spread if spread > 0 else 0.0

    def bounds(level: float) -> tuple[float, float]:
        intervals = []
        for area, variance in zip(placed.auroc, np.diag(placed.covariance), strict=True):
            intervals.append(logit_bounds(float(area), 0.0 if few else float(variance), positives, negatives, level))
        (area1, low1, high1), (area2, low2, high2) = intervals
        down, up = (area1 - low1, high2 - area2), (high1 - area1, area2 - low2)
        below, above = (np.sqrt(max(a**2 + b**2 - 2 * alike * a * b, 0.0)) for a, b in (down, up))
        return area1 - area2 - float(below), area1 - area2 + float(above)

    return bounds


def _covariance(values: np.ndarray, of_one: float) -> np.ndarray:
    """Covariance (k, k) of `values` (k, n), with n - 1; where n is 1 the variance `of_one`, of rows that differ independent."""
    n = values.shape[1]
    if n < 2:
        return np.where((values == values.T) | np.isnan(of_one), of_one, 0.0)
    centred = values - values.mean(axis=1, keepdims=True)
    return centred @ centred.T / (n - 1)
