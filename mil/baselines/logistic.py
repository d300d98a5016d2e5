"""Inputs and labels by site -> a logistic regression: on one table, or from sums that sites send (federated Newton)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.bags.covariates import Scaling

STEPS = 50
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Logistic:
    """Scaling, coefficients (width,) and intercept."""

    scaling: Scaling
    coefficients: np.ndarray
    intercept: float

    def chance(self, values: np.ndarray) -> np.ndarray:
        """Probability of a positive for each row of `values` (patients, width)."""
        return 1 / (1 + np.exp(-(self.scaling.apply(values) @ self.coefficients + self.intercept)))


def fit_together(values: Sequence[np.ndarray], labels: Sequence[np.ndarray], strength: float) -> Logistic:
    """scikit-learn's ridge logistic regression on the sites' tables laid together; `strength` is its C."""
    from sklearn.linear_model import LogisticRegression

    scaling = Scaling.of(values)
    x, y = scaling.apply(np.concatenate(values)), np.concatenate(labels)
    model = LogisticRegression(C=strength, tol=1e-8, solver="newton-cholesky").fit(x, y)
    return Logistic(scaling, model.coef_[0], float(model.intercept_[0]))


def fit_federated(values: Sequence[np.ndarray], labels: Sequence[np.ndarray], strength: float) -> Logistic:
    """The same optimum by Newton's method: in each step a site sends the sums of its gradient and curvature, no patient.

    Sites are summed in the order given, so give them sorted by name.
    """
    scaling = Scaling.of(values)
    designs = [np.column_stack([np.ones(len(part)), scaling.apply(part)]) for part in values]
    width = designs[0].shape[1]
    ridge = np.diag([0.0] + [1 / strength] * (width - 1))
    beta = np.zeros(width)
    loss = _loss(designs, labels, beta, ridge)
    for _ in range(STEPS):
        gradient, curvature = -ridge @ beta, ridge.copy()
        for design, truth in zip(designs, labels, strict=True):
            chance = 1 / (1 + np.exp(-design @ beta))
            gradient += design.T @ (truth - chance)
            curvature += (design * (chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-12 * np.eye(width), gradient)
        beta, loss = _shortened(designs, labels, beta, step, ridge, loss)
        if np.abs(step).max() < TOLERANCE:
            break
    return Logistic(scaling, beta[1:], float(beta[0]))


def _shortened(
    designs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    beta: np.ndarray,
    step: np.ndarray,
    ridge: np.ndarray,
    before: float,
) -> tuple[np.ndarray, float]:
    """The step, halved until the loss (a sum over sites, too) does not rise."""
    for halving in range(30):
        moved = beta + step / 2**halving
        loss = _loss(designs, labels, moved, ridge)
        if loss <= before + 1e-12 * abs(before):
            return moved, loss
    return beta, before


def _loss(designs: Sequence[np.ndarray], labels: Sequence[np.ndarray], beta: np.ndarray, ridge: np.ndarray) -> float:
    total = float(beta @ ridge @ beta) / 2
    for design, truth in zip(designs, labels, strict=True):
        logits = design @ beta
        total += float((np.logaddexp(0, logits) - truth * logits).sum())
    return total


def log_loss(labels: np.ndarray, chance: np.ndarray) -> float:
    """Summed log loss."""
    clipped = np.clip(chance, 1e-12, 1 - 1e-12)
    return float(-(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)).sum())
