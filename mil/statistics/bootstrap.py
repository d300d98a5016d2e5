"""Patients -> resamples of patients, as weights, so that every metric is computed on all resamples at once."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mil.config import MetricsSpec
from mil.rng import rng

# (labels (n,), scores (n,), weights (resamples, n)) -> one value a resample
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def resamples(strata: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """How often each patient is drawn, (count, patients) float: with replacement, within `strata` (site and label, say).

    Drawing within labels keeps both classes in every resample; the interval is conditional on their numbers.
    """
    weights = np.zeros((count, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
        weights[:, members] = drawn
    return weights


def strata_of(*columns: np.ndarray) -> np.ndarray:
    """One integer for each combination of the columns' values, in sorted order."""
    table = np.stack([np.unique(np.asarray(column), return_inverse=True)[1] for column in columns], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)


def bootstrap_weights(table: pd.DataFrame, spec: MetricsSpec, within: Sequence[str] = ("site", "label")) -> np.ndarray:
    """Resamples of these patients within site and label; the same patients give the same draws in every arm."""
    strata = strata_of(*(table[name].to_numpy() for name in within))
    return resamples(strata, spec.bootstrap, rng(spec.seed, "bootstrap", *table["patient_id"]))


def point(metric: Metric, labels: np.ndarray, scores: np.ndarray) -> float:
    """The metric on the patients as they are."""
    return float(metric(labels, scores, np.ones((1, len(labels))))[0])
