"""Scores and labels -> net benefit of acting on them (Vickers and Elkin 2006, Med Decis Making 26:565)."""

import numpy as np


def net_benefit(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, threshold: float) -> np.ndarray:
    """Net benefit a patient of treating those at or above `threshold` (0-1), for each resample (weights (b, n))."""
    treated = scores >= threshold
    odds = threshold / (1 - threshold)
    gain = np.where(labels == 1, 1.0, -odds) * treated
    return weights @ gain / weights.sum(axis=1)


def treat_all(labels: np.ndarray, threshold: float) -> float:
    """Net benefit of treating everybody."""
    return float(net_benefit(labels, np.ones(len(labels)), np.ones((1, len(labels))), threshold)[0])
