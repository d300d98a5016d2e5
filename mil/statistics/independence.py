"""Counts of patients by two characteristics -> whether these are independent."""

import numpy as np
import scipy

FEWEST_EXPECTED = 5
"""Expected count of a cell below which the distribution is taken from permutations."""
PERMUTATIONS = 9999
BATCH = 2**21
"""Most patients of the permutations that are in memory at once."""


def chi_squared(counts: np.ndarray) -> float:
    """p of independence of rows and columns (Pearson); by permutation of the patients where an expected count is below 5.

    nan where fewer than two rows or columns have patients.
    """
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape, default=0) < 2:
        return np.nan
    tested = scipy.stats.chi2_contingency(counts, correction=False)
    if tested.expected_freq.min() >= FEWEST_EXPECTED:
        return float(tested.pvalue)
    row, column = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    of_column = np.eye(counts.shape[1])[column]  # (patients, columns)

    def statistic(rows: np.ndarray, axis: int) -> np.ndarray:
        """Pearson's of each permutation (..., patients) of the patients' rows: scipy's own goes through them one by one."""
        tables = np.stack([(rows == number).astype(float) @ of_column for number in range(len(counts))], axis=-2)
        return ((tables - tested.expected_freq) ** 2 / tested.expected_freq).sum(axis=(-2, -1))

    permuted = scipy.stats.permutation_test(
        (row,), statistic, permutation_type="pairings", alternative="greater", vectorized=True, batch=max(BATCH // len(row), 1),
        n_resamples=PERMUTATIONS, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(permuted.pvalue)
