"""A score and clinical columns -> odds ratios of a logistic model with both, and whether the score adds to the columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from scipy.special import expit

from mil.bags.covariates import complete_inputs
from mil.errors import MilError
from mil.statistics.intervals import normal_quantile

STEPS = 60
SEPARATED = 15.0  # a standardised coefficient beyond is separation
PATIENTS_A_COVARIATE = 5
DEPENDENT = 1e-6
"""Share of the largest singular value below which the smallest is rounding."""


@dataclass(frozen=True)
class AddedValue:
    """Odds ratios for a standard deviation (covariate, ratio, low, high, p) and the likelihood-ratio test of the score."""

    ratios: pd.DataFrame
    patients: int
    likelihood_ratio: float
    p: float


def added_value(
    scores: pd.DataFrame, patients: pd.DataFrame, columns: Sequence[str], confidence: float, inflation: float = 1.0
) -> AddedValue:
    """Logistic regression of the label on clinical `columns`, with and without the score (logit), by maximum likelihood.

    `scores` has label and score by patient_id. Patients with a blank column are left out of both. The variance of the score's
    coefficient is taken `inflation` times, and the likelihood ratio divided by it: of two held-out patients each trained the model of the
    other. Raises where there are too few patients for the columns, or labels are separated.
    """
    inputs = complete_inputs(patients, columns, scores.index)
    complete = scores.loc[inputs.index]
    clipped = complete["score"].clip(1e-4, 1 - 1e-4).to_numpy(dtype=float)
    if len(np.unique(clipped)) < 2:
        raise MilError("all patients have the same score, which can add nothing to the columns")
    covariates, labels = [*inputs.columns, "score"], complete["label"].to_numpy(dtype=int)
    rarer = int(min(labels.sum(), (1 - labels).sum()))
    if rarer < PATIENTS_A_COVARIATE * len(covariates):
        raise MilError(f"{rarer} patients of the rarer class are too few for a model with {len(covariates)} covariates")
    x = np.column_stack([inputs.to_numpy(dtype=float), np.log(clipped / (1 - clipped))])
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    _refuse_dependent(x, covariates)
    full, errors, likelihood = _fit(x, labels)
    _, _, without = _fit(x[:, :-1], labels)
    errors[-1] *= np.sqrt(inflation)
    half = normal_quantile(confidence) * errors
    ratios = pd.DataFrame(
        {
            "covariate": covariates,
            "ratio": np.exp(full),
            "low": np.exp(full - half),
            "high": np.exp(full + half),
            "p": 2 * scipy.stats.norm.sf(np.abs(full / errors)),
        }
    )
    ratio = 2 * (likelihood - without) / inflation
    return AddedValue(ratios, len(complete), ratio, float(scipy.stats.chi2.sf(ratio, 1)))


def _refuse_dependent(x: np.ndarray, covariates: Sequence[str]) -> None:
    """Raise where standardised columns determine one another, as age and year of birth do: no ratio of theirs can be told."""
    _, sizes, axes = np.linalg.svd(x, full_matrices=False)
    if sizes[-1] < DEPENDENT * sizes[0]:
        names = [str(name) for name, share in zip(covariates, axes[-1], strict=True) if abs(share) > DEPENDENT**0.5]
        raise MilError(f"{' and '.join(names)} determine one another; leave one of them out of metrics.clinical")


def _fit(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients, their errors and the log likelihood, by Newton's method; the intercept is fitted and not given."""
    design = np.column_stack([np.ones(len(x)), x])
    beta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        chance = expit(design @ beta)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-10 * np.eye(len(beta)), design.T @ (labels - chance))
        beta += np.clip(step, -2, 2)
        if np.abs(beta).max() > SEPARATED:
            raise MilError("the columns separate positive from negative patients, so odds ratios have no end")
        if np.abs(step).max() < 1e-10:
            break
    logits = design @ beta
    chance = expit(logits)
    curvature = (design * (chance * (1 - chance))[:, None]).T @ design
    errors = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return beta[1:], errors[1:], float((labels * logits - np.logaddexp(0, logits)).sum())
