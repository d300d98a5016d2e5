"""Resamples of a measure -> its interval, on a scale that ends where the measure does, as a row of the table of metrics."""

from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from mil.statistics.intervals import Bounds, on_logit_scale

Scale = Literal["share", "correlation", "positive", "real"]
BOOTSTRAP = "patient bootstrap"
ON_SCALE = {"share": ", logit scale", "correlation": ", Fisher's z", "positive": ", log scale", "real": ""}
LIMITS = {"share": (0.0, 1.0), "correlation": (-1.0, 1.0), "positive": (0.0, np.inf), "real": (-np.inf, np.inf)}

WIDEST: dict[str, float] = {name: high - low for name, (low, high) in LIMITS.items()}
"""The largest difference of two values that can be."""


def row_of(
    metric: str,
    scale: Scale,
    value: float,
    drawn: np.ndarray,
    patients: int,
    confidence: float,
    reason: str,
    few: str = "",
) -> dict[str, Any]:
    """One row; `reason` says why the value is blank, where it is, and `few` why it has no interval."""
    if not np.isfinite(value):
        bounds = Bounds(np.nan, np.nan, f"not defined: {reason or 'patients do not vary'}")
        value = np.nan
    elif few:
        bounds = Bounds(np.nan, np.nan, few)
    else:
        bounds = bootstrap_bounds(scale, value, drawn, patients, confidence)
    return metric_row(metric, value, bounds.low, bounds.high, bounds.method)


def metric_row(metric: str, value: float, low: float, high: float, method: str) -> dict[str, Any]:
    """A row of a table of metrics, without what it is a metric of."""
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}


def bootstrap_bounds(scale: Scale, value: float, drawn: np.ndarray, patients: int, confidence: float) -> Bounds:
    """Bounds of a value from the deviation of its resamples, t quantile, on a scale that ends where the measure does.

    Percentiles of resamples are short of their level with few patients. Resamples in which the measure is not defined are
    left out, and more than one in twenty of them leaves no interval.
    """
    known = drawn[np.isfinite(drawn)]
    if len(known) < 0.95 * len(drawn):
        lost = 1 - len(known) / len(drawn)
        return Bounds(np.nan, np.nan, f"no interval: not defined in {lost:.0%} of the resamples")
    error, degrees = float(known.std()), max(patients - 1, 1)
    unit = (
        1.0 if scale in {"share", "correlation"} else float(np.abs(known).max())
    )  # a number may be in moles per litre
    error = error if error > 1e-9 * unit else 0.0
    if scale == "share":
        return on_logit_scale(value, error, degrees, confidence, patients, BOOTSTRAP)
    half = float(stdtrit(degrees, 0.5 + confidence / 2)) * error
    method = BOOTSTRAP + ON_SCALE[scale]
    if not error > 0 or (scale == "correlation" and abs(value) >= 1) or (scale == "positive" and value <= 0):
        return Bounds(np.nan, np.nan, "no interval: resamples do not vary")
    if scale == "correlation":
        half /= 1 - value**2
        return Bounds(float(np.tanh(np.arctanh(value) - half)), float(np.tanh(np.arctanh(value) + half)), method)
    if scale == "positive":
        return Bounds(float(value * np.exp(-half / value)), float(value * np.exp(half / value)), method)
    return Bounds(value - half, value + half, method)
