"""Scores and labels of one scope -> an interval for each metric that keeps its level with few patients.

The percentile bootstrap within label, the usual way, is short of its level with 30 to 60 patients and for Brier score, calibration
and net benefit far from it (52-96 % where 95 % is said), since these move with the share of positives, which it holds fixed;
`benchmarks/coverage.py` has the figures. Each metric here has an interval of its own, on a scale that ends where the metric
does, and of a width above 0 where no patient contradicts the score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from mil.registry import Registry
from mil.rng import rng
from mil.statistics import calibration, classification
from mil.statistics.bootstrap import Metric, point

GROUPS = 500  # deletions of the jackknife; more patients are deleted by blocks
ECE_GRID, ECE_DRAWS = 41, 500
EVENED = 0.75
LEAST = 1e-9  # a standard error below is rounding


@dataclass(frozen=True)
class Bounds:
    """An interval and how it was found; nan with the reason where there is none."""

    low: float
    high: float
    method: str


# (labels, scores, confidence) -> bounds
Interval = Callable[[np.ndarray, np.ndarray, float], Bounds]
INTERVALS: Registry[Interval] = Registry("interval")


def normal_quantile(confidence: float) -> float:
    """Of a two-sided interval."""
    return float(ndtri(0.5 + confidence / 2))


def wilson(share: float, total: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `total`, which need not be whole."""
    z = normal_quantile(confidence)
    centre, half = share + z**2 / (2 * total), z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = float((centre - half) / (1 + z**2 / total)), float((centre + half) / (1 + z**2 / total))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def on_logit_scale(value: float, error: float, degrees: float, confidence: float, total: float, how: str) -> Bounds:
    """Bounds of a value in 0-1 with a standard error: t quantile, logit scale. Wilson's for `total` where there is no error."""
    if not np.isfinite(value):
        return Bounds(np.nan, np.nan, "not defined here")
    if not (0 < value < 1 and error > LEAST):
        return Bounds(*wilson(value, total, confidence), "Wilson, for want of variance")
    half = float(stdtrit(degrees, 0.5 + confidence / 2)) * error / (value * (1 - value))
    centre = np.log(value / (1 - value))
    return Bounds(
        float(1 / (1 + np.exp(half - centre))), float(1 / (1 + np.exp(-half - centre))), f"{how}, logit scale"
    )


def deletions(patients: int) -> np.ndarray:
    """Weights (groups, patients) of the jackknife: each patient left out once, or blocks of them where they are many."""
    groups = min(patients, GROUPS)
    return 1.0 - (np.arange(patients)[None] % groups == np.arange(groups)[:, None])


def jackknife_error(values: np.ndarray) -> float:
    """Standard error from the values without each patient (or block); nan ones are left out."""
    values = values[np.isfinite(values)]
    count = len(values)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())) if count > 1 else np.nan


def jackknifed(metric: Metric, labels: np.ndarray, scores: np.ndarray, confidence: float, total: float) -> Bounds:
    """Of a metric in 0-1, by leaving out each patient."""
    value = point(metric, labels, scores)
    error = jackknife_error(metric(labels, scores, deletions(len(labels))))
    return on_logit_scale(value, error, min(len(labels), GROUPS) - 1, confidence, total, "jackknife")


@INTERVALS.register("auprc")
def auprc(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Bounds:
    """Jackknife on the logit scale; of positives alone where they all come first (Boyd, Eng and Page 2013)."""
    return jackknifed(classification.auprc, labels, scores, confidence, float(labels.sum()))


@INTERVALS.register("brier")
def brier(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Bounds:
    """A mean of squares: its standard error on the logit scale. It is known where every score is 0.5: all patients have 0.25."""
    squares = (scores - labels) ** 2
    if np.abs(scores - 0.5).max() <= LEAST:
        return Bounds(0.25, 0.25, "exact, every score is 0.5")
    error = float(squares.std(ddof=1) / np.sqrt(len(squares))) if len(squares) > 1 else np.nan
    return on_logit_scale(float(squares.mean()), error, len(squares) - 1, confidence, len(squares), "mean")


@INTERVALS.register("calibration_slope")
def slope(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Bounds:
    """Sandwich error of the logistic regression, t quantile."""
    ones = np.ones((1, len(labels)))
    beta = calibration.recalibrated(labels, scores, ones)[0]
    if not np.isfinite(beta).all():
        reason = "the score separates the classes, all scores are equal, or one is exactly 0 or 1 and wrong"
        return Bounds(np.nan, np.nan, f"not defined: {reason}")
    design = np.stack([np.ones(len(scores)), calibration.logit(scores)], axis=1)
    return _sandwich(design, labels, design @ beta, float(beta[1]), 1, confidence)


@INTERVALS.register("calibration_intercept")
def intercept(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Bounds:
    """Sandwich error of the shift, t quantile."""
    shift = point(calibration.intercept, labels, scores)
    if not np.isfinite(shift):
        return Bounds(
            np.nan, np.nan, "not defined: patients of one class only, or a score of exactly 0 or 1 that is wrong"
        )
    design = np.ones((len(scores), 1))
    return _sandwich(design, labels, shift + calibration.logit(scores), shift, 0, confidence)


def _sandwich(
    design: np.ndarray, labels: np.ndarray, logits: np.ndarray, value: float, column: int, confidence: float
) -> Bounds:
    """Huber and White's error with residuals divided by 1 - leverage (HC3), which few patients need."""
    chance = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    spread = chance * (1 - chance)
    bread = np.linalg.pinv((design * spread[:, None]).T @ design)
    leverage = np.einsum("ni,ij,nj->n", design, bread, design) * spread
    residual = (labels - chance) / np.maximum(1 - leverage, 0.05)
    gradients = design * residual[:, None]
    error = float(np.sqrt((bread @ (gradients.T @ gradients) @ bread)[column, column]))
    half = float(stdtrit(len(labels) - design.shape[1], 0.5 + confidence / 2)) * error
    return Bounds(value - half, value + half, "sandwich (HC3), t")


@INTERVALS.register("ece")
def ece(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Bounds:
    """The errors under which the one that was found is not unusual: bins of given rates, drawn anew (parametric bootstrap).

    The sum of absolute gaps is above 0 even for a score without fault, so resampling it can never reach the truth. Rates are
    the scores' means moved by a multiple of the gaps that were found (lower bound) or of gaps more alike (upper bound): the
    smaller a gap, the more of it is noise.
    """
    bins = calibration.bin_of(scores, calibration.BINS)
    numbers = np.bincount(bins, minlength=calibration.BINS)
    there = numbers > 0
    numbers, share = numbers[there], numbers[there] / len(scores)
    mean = np.bincount(bins, scores, calibration.BINS)[there] / numbers
    gaps = np.bincount(bins, labels - scores, calibration.BINS)[there] / numbers
    error, tail = float(share @ np.abs(gaps)), (1 - confidence) / 2
    alike = np.copysign((1 - EVENED) * np.abs(gaps) + EVENED * error, gaps)
    bounds = []
    for direction in (gaps, alike):
        direction = np.where(np.abs(direction) > 1e-9, direction, 1e-9)
        targets = np.linspace(0, 1, ECE_GRID) ** 2  # finer near 0
        rates = np.clip(mean + direction * (targets / (share @ np.abs(direction)))[:, None], 0, 1)
        truth = np.abs(rates - mean) @ share
        drawn = rng(0, "ece", len(scores)).binomial(numbers, rates, (ECE_DRAWS, *rates.shape)) / numbers
        again = np.abs(drawn - mean) @ share
        below, above = (again <= error + 1e-12).mean(axis=0), (again >= error - 1e-12).mean(axis=0)
        # an error smaller than any rates would give is no contradiction
        likely = (below > min(tail, 0.1 * float(below.max()))) & (above > tail)
        bounds.append(truth[likely] if likely.any() else np.array([0.0, 1.0]))
    return Bounds(float(bounds[0].min()), float(bounds[1].max()), "test inversion")


def net_benefit(labels: np.ndarray, scores: np.ndarray, threshold: float, confidence: float) -> Bounds:
    """True positives less weighted false ones, of all patients: Wilson's intervals of both joined (MOVER, correlated)."""
    called, odds = scores >= threshold, threshold / (1 - threshold)
    true, false = float(np.mean(called & (labels == 1))), float(np.mean(called & (labels == 0)))
    (low, high), (low_false, high_false) = (wilson(share, len(labels), confidence) for share in (true, false))
    spread = np.sqrt(true * false / ((1 - true) * (1 - false))) if true < 1 and false < 1 else 0.0
    value = true - odds * false
    downs, ups = (true - low, odds * (high_false - false)), (high - true, odds * (false - low_false))
    down, up = (np.sqrt(a**2 + b**2 + 2 * spread * a * b) for a, b in (downs, ups))
    return Bounds(float(value - down), float(value + up), "MOVER of Wilson")


def votes(values: np.ndarray, confidence: float) -> Bounds:
    """Mean of votes in 0-1 of some patients: Wilson's for as many patients of whole votes as vary like these."""
    share, total = float(values.mean()), len(values)
    whole = share * (1 - share)
    variance = (((values - share) ** 2).sum() + whole) / total
    alike = total * min(whole / variance, 2.0) if variance > 0 else total
    return Bounds(*wilson(share, alike, confidence), "Wilson")


def mean_of_two(first: tuple[float, Bounds], second: tuple[float, Bounds]) -> Bounds:
    """Of the mean of two independent shares, from each share's interval (MOVER; Zou and Donner 2008)."""
    (share, of_share), (other, of_other) = first, second
    value = (share + other) / 2
    down = np.hypot(share - of_share.low, other - of_other.low) / 2
    up = np.hypot(of_share.high - share, of_other.high - other) / 2
    return Bounds(float(value - down), float(value + up), "MOVER of Wilson")
