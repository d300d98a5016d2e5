"""Independence of two characteristics: scipy's own test gives the same p."""

import numpy as np
import pytest
import scipy

from mil.statistics.independence import PERMUTATIONS, chi_squared

MANY = np.array([[30, 20, 25], [15, 30, 12]])
FEW = np.array([[3, 0, 4, 1], [1, 5, 2, 2], [0, 1, 1, 3]])


def test_many_patients_are_tested_by_the_distribution_and_few_by_permutation_as_scipy_does():
    assert chi_squared(MANY) == scipy.stats.chi2_contingency(MANY, correction=False).pvalue
    method = scipy.stats.PermutationMethod(n_resamples=PERMUTATIONS, rng=np.random.default_rng(0))
    assert chi_squared(FEW) == scipy.stats.chi2_contingency(FEW, correction=False, method=method).pvalue
    with_nobody = np.pad(FEW, ((0, 1), (1, 0)))
    assert chi_squared(with_nobody) == chi_squared(FEW)


@pytest.mark.parametrize("counts", [np.zeros((2, 2), int), np.array([[3, 4]]), np.array([[3, 0], [2, 0]])])
def test_one_row_or_column_has_no_p(counts):
    assert np.isnan(chi_squared(counts))
