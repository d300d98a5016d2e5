"""Many p values -> adjusted ones: Holm (family-wise) and Benjamini-Hochberg (false discovery rate)."""

import numpy as np
import scipy


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment (Holm 1979, Scand J Statist 6:65), valid under any dependence; nan stays nan."""
    p = np.asarray(p, dtype=np.float64)
    adjusted, known = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    if len(order):
        adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjustment (1995, J R Stat Soc B 57:289) for the false discovery rate; nan stays nan."""
    p = np.asarray(p, dtype=np.float64)
    adjusted, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        adjusted[known] = scipy.stats.false_discovery_control(p[known])
    return adjusted
