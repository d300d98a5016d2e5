"""A difference of two measures -> an interval that keeps to possible values and agrees with the test, at any confidence."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtr, stdtrit

from mil.statistics.multiplicity import holm

# confidence -> low, high
Bounds = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval, test statistic and two-sided p value."""

    difference: float
    low: float
    high: float
    z: float
    p: float
    bounds: Bounds = field(default=lambda _: (np.nan, np.nan), compare=False)
    """The interval at another confidence; it leaves 0 out exactly where p < 1 - confidence."""


def bounded(difference: float, critical: float, widest: float = 1.0) -> tuple[float, float]:
    """Interval within (-widest, widest) of a difference: symmetric on the scale of the inverse hyperbolic tangent.

    It leaves 0 out exactly where the difference is larger than `critical`. nan where `critical` is not known, or 0: the resamples do not
    show how much the difference varies.
    """
    if not 0 < critical < np.inf or abs(difference) >= widest:
        return np.nan, np.nan
    if np.isinf(widest):
        return difference - critical, difference + critical
    part = difference / widest
    centre = np.arctanh(part)
    half = critical / widest * (centre / part if part else 1.0)
    return float(widest * np.tanh(centre - half)), float(widest * np.tanh(centre + half))


def difference_of(
    difference: float, variance: float, confidence: float = 0.95, degrees: float = np.inf, widest: float = 1.0
) -> Difference:
    """A difference and its variance -> interval and test with a t quantile of `degrees` (normal by default).

    The interval keeps within (-widest, widest), the largest possible difference: 1 of shares, 2 of correlations.
    Without variance the interval is nan, and p is 1 where the difference is 0, else nan.
    """
    if not variance > 0:
        return Difference(difference, np.nan, np.nan, 0.0, 1.0 if difference == 0 else np.nan)
    error = float(np.sqrt(variance))
    z = difference / error

    def bounds(level: float) -> tuple[float, float]:
        return bounded(difference, float(stdtrit(degrees, 0.5 + level / 2)) * error, widest)

    return Difference(difference, *bounds(confidence), z, float(2 * stdtr(degrees, -abs(z))), bounds)


def agreeing(bounds: Bounds, difference: float, p: float) -> Bounds:
    """An interval made to agree with a test: cut at 0 where the test rejects no difference, else widened to hold 0.

    Where the test keeps its level, so does the interval, for 0 and for what lies beyond.
    """
    least = float(np.nextafter(0, 1))

    def agreed(level: float) -> tuple[float, float]:
        low, high = bounds(level)
        if p >= 1 - level:
            return min(low, 0.0), max(high, 0.0)
        return (max(low, least), high) if difference > 0 else (low, min(high, -least))

    return agreed


def corrected(tests: list[Difference], confidence: float) -> list[tuple[float, float, float]]:
    """(low, high, p) of each of several tests after Holm's correction over all of them.

    Each interval is at Holm's level of its own p value, so that it leaves 0 out exactly where the corrected p is below
    1 - `confidence`.
    """
    p = np.array([test.p for test in tests], dtype=float)
    adjusted, intervals = holm(p), []
    for test, raw, after in zip(tests, p, adjusted, strict=True):
        if not np.isfinite(after):
            intervals.append((np.nan, np.nan, np.nan))
            continue
        share = raw / after if 0 < after < 1 else 1 / len(tests)
        intervals.append((*test.bounds(1 - (1 - confidence) * share), float(after)))
    return intervals
