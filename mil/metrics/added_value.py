"""A score and clinical columns -> odds ratios of a logistic model with both, and whether the score adds to the columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from scipy.special import expit

from mil.bags.covariates import clinical_inputs
from mil.errors import MilError
from mil.statistics.intervals import normal_quantile

STEPS = 60
SEPARATED = 15.0  # a standardised coefficient beyond is separation
PATIENTS_A_COVARIATE = 5


@dataclass(frozen=True)
class AddedValue:
    """Odds ratios for a standard deviation (covariate, ratio, low, high, p) and the likelihood-ratio test of the score."""

    ratios: pd.DataFrame
    patients: int
    likelihood_ratio: float
    p: float


def added_value(scores: pd.DataFrame, patients: pd.DataFrame, columns: Sequence[str], confidence: float) -> AddedValue:
    """Logistic regression of the label on clinical `columns`, with and without the score (logit), by maximum likelihood.

    `scores` has label and score by patient_id. Patients with a blank column are left out of both. Raises where there are
    too few patients for the columns, or labels are separated.
    """
    inputs = clinical_inputs(patients, columns).reindex(scores.index)
    inputs = inputs.loc[:, inputs.nunique() > 1]
    clipped = scores["score"].clip(1e-4, 1 - 1e-4)
    table = inputs.assign(score=np.log(clipped / (1 - clipped)), label=scores["label"]).dropna()
    if table["score"].nunique() < 2:
        raise MilError("all patients have the same score, which can add nothing to the columns")
    covariates = [name for name in [*inputs.columns, "score"] if table[name].nunique() > 1]
    rarer = int(min(table["label"].sum(), (1 - table["label"]).sum()))
    if rarer < PATIENTS_A_COVARIATE * len(covariates):
        raise MilError(f"{rarer} patients of the rarer class are too few for a model with {len(covariates)} covariates")
    x = table[covariates].to_numpy(dtype=float)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    labels = table["label"].to_numpy(dtype=int)
    full, errors, likelihood = _fit(x, labels)
    _, _, without = _fit(x[:, :-1], labels)
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
    ratio = 2 * (likelihood - without)
    return AddedValue(ratios, len(table), ratio, float(scipy.stats.chi2.sf(ratio, 1)))


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
