"""A difference of two measures -> an interval that keeps to possible values and agrees with the test, at any confidence."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy

from mil.statistics.multiplicity import holm

# confidence -> how far a difference may be from 0 by chance
Critical = Callable[[float], float]


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval, test statistic and two-sided p value."""

    difference: float
    low: float
    high: float
    z: float
    p: float
    critical: Critical = field(default=lambda _: np.nan, compare=False)
    widest: float = 1.0
    """The largest difference that can be: 1 of shares, 2 of correlations, infinite of others."""

    def bounds(self, confidence: float) -> tuple[float, float]:
        """The interval at another confidence; it leaves 0 out exactly where p < 1 - confidence."""
        return bounded(self.difference, self.critical(confidence), self.widest)


def bounded(difference: float, critical: float, widest: float = 1.0) -> tuple[float, float]:
    """Interval within (-widest, widest) of a difference: symmetric on the scale of the inverse hyperbolic tangent.

    It leaves 0 out exactly where the difference is larger than `critical`. nan where `critical` is not known, or 0: no sample shows how far
    chance moves a difference that it never moved.
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

    The interval keeps within (-widest, widest). Without variance it is not known, and p is 1 where there is no difference, else not known.
    """
    if not variance > 0:
        return Difference(difference, np.nan, np.nan, 0.0, 1.0 if difference == 0 else np.nan, widest=widest)
    error = float(np.sqrt(variance))
    z = difference / error

    def critical(level: float) -> float:
        return float(scipy.stats.t.ppf(0.5 + level / 2, degrees)) * error

    low, high = bounded(difference, critical(confidence), widest)
    return Difference(difference, low, high, z, float(2 * scipy.stats.t.sf(abs(z), degrees)), critical, widest)


def permuted(difference: float, drawn: np.ndarray, confidence: float) -> Difference:
    """A difference and those under exchange of the two models (resamples,) -> a permutation test and its interval."""
    size = np.sort(np.abs(drawn))
    count = int(np.sum(size >= abs(difference) - 1e-12))
    p = (1 + count) / (1 + len(drawn))

    def critical(level: float) -> float:
        return float(size[min(int(np.floor(level * (1 + len(size)))), len(size) - 1)])

    low, high = bounded(difference, critical(confidence))
    return Difference(difference, low, high, np.nan, p, critical)


def corrected(tests: list[Difference], confidence: float) -> list[tuple[float, float, float]]:
    """(low, high, p) of each of several tests after Holm's correction over all of them.

    Each interval is at Holm's level of its own p value, so that it leaves 0 out exactly where the corrected p is below
    1 - `confidence`.
    """
    p = np.array([one.p for one in tests], dtype=float)
    adjusted, found = holm(p), []
    for one, raw, after in zip(tests, p, adjusted, strict=True):
        if not np.isfinite(after):
            found.append((np.nan, np.nan, np.nan))
            continue
        share = raw / after if 0 < after < 1 else 1 / len(tests)
        found.append((*one.bounds(1 - (1 - confidence) * share), float(after)))
    return found
