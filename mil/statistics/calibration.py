"""Scores and labels -> whether a score of 0.3 means 30 %: slope, intercept, expected error, on weighted patients."""

import numpy as np
from scipy.special import expit

from mil.statistics.measures import METRICS

CLIP = 1e-6
STEPS = 30
TOLERANCE = 1e-8
STEEPEST = 100.0  # a slope beyond is separation: no finite fit
BINS = 5


@METRICS.register("calibration_slope")
def slope(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of the logistic regression of the label on the score's logit (Cox 1958); 1 is ideal, below 1 overconfident."""
    return recalibrated(labels, scores, weights)[:, 1]


@METRICS.register("calibration_intercept")
def intercept(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Calibration in the large: the shift of logits (slope held at 1) that makes the mean score the share of positives.

    nan where a patient whose score is exactly 0 or 1 is of the other class: no shift of an infinite logit allows for that.
    """
    x = logit(scores)
    shift = np.zeros(len(weights))
    for _ in range(STEPS):
        chance = expit(shift[:, None] + x)
        step = (weights * (labels - chance)).sum(axis=1) / np.maximum(
            (weights * chance * (1 - chance)).sum(axis=1), 1e-12
        )
        shift += np.clip(step, -2, 2)
        if np.abs(step).max() < TOLERANCE:
            break
    return np.where((np.abs(shift) < STEEPEST) & ~_impossible(labels, scores, weights), shift, np.nan)


def _impossible(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether a resample holds a patient whose score is exactly 0 or 1 and whose label is the other."""
    return weights @ (((scores <= 0) & (labels == 1)) | ((scores >= 1) & (labels == 0))) > 0


@METRICS.register("ece")
def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean distance of score and share of positives over `BINS` bins of equally many patients, weighted by patients."""
    bins = np.eye(BINS)[bin_of(scores, BINS)]
    gaps = np.abs((weights * (labels - scores)) @ bins)
    return gaps.sum(axis=1) / weights.sum(axis=1)


def bin_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each patient, 0 to bins - 1, of equally many patients; equal scores share a bin."""
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, scores, side="right")


def logit(scores: np.ndarray) -> np.ndarray:
    """Log odds of scores, kept finite."""
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    return np.log(clipped / (1 - clipped))


def recalibrated(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Intercept and slope (resamples, 2) by Newton's method; nan where labels are separated by the score or scores are equal."""
    design = np.stack([np.ones(len(scores)), logit(scores)], axis=1)
    outer = np.einsum("ni,nj->nij", design, design).reshape(len(scores), 4)
    beta = np.zeros((len(weights), 2))
    moving = np.ones(len(weights), bool)
    for _ in range(STEPS):
        chance = expit(beta[moving] @ design.T)
        gradient = (weights[moving] * (labels - chance)) @ design
        curvature = ((weights[moving] * chance * (1 - chance)) @ outer).reshape(-1, 2, 2) + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        beta[moving] += np.clip(step, -5, 5)
        settled = np.abs(step).max(axis=1) < TOLERANCE
        lost = np.abs(beta[moving]).max(axis=1) > STEEPEST
        places = np.flatnonzero(moving)
        beta[places[lost]] = np.nan
        moving[places[settled | lost]] = False
        if not moving.any():
            break
    beta[moving | _impossible(labels, scores, weights) | _alike(design[:, 1], weights)] = np.nan
    return beta


def _alike(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether all patients of a resample have the same value."""
    drawn = np.where(weights > 0, values, np.nan)
    return ~(np.nanmax(drawn, axis=1) - np.nanmin(drawn, axis=1) > 1e-9)
