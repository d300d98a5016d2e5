"""What a measure of predictions is, and the paired test of two of its values."""

from dataclasses import dataclass

import numpy as np

from mil.endpoints.bounds import Scale
from mil.statistics.bootstrap import Metric
from mil.statistics.differences import Difference, difference_of

PAIRED_BOOTSTRAP = "patient bootstrap, paired"


@dataclass(frozen=True)
class Measure:
    """A number that says how well scores fit labels.

    `function` takes labels (n,) (survival: time and event, (n, 2)), scores (n,) (several classes: (n, classes)) and weights
    (resamples, n), and gives a value a resample, nan where it is not defined.
    """

    name: str
    title: str
    function: Metric
    scale: Scale = "share"
    chance: float | None = None
    """What a model that knows nothing reaches; none where that depends on the patients."""


@dataclass(frozen=True)
class Pair:
    """Two scores' primary measure on the same patients, and the test of their difference."""

    values: tuple[float, float]
    tested: Difference
    method: str


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, confidence: float, widest: float, inflation: float = 1.0
) -> Difference:
    """Difference of two measures, the patients as they are first and then their resamples; normal, by its deviation there.

    The variance is taken `inflation` times.
    """
    drawn = (first - second)[1:]
    drawn = drawn[np.isfinite(drawn)]
    difference = float(first[0] - second[0])
    if len(drawn) < 0.95 * (len(first) - 1):
        return Difference(difference, np.nan, np.nan, np.nan, np.nan)
    variance = float(drawn.var()) * inflation
    return difference_of(difference, variance if variance > 1e-12 else 0.0, confidence, widest=widest)
