"""Filled review sheets -> how often patterns stand in each kind of tile, and how far the reviewers agree."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from mil.statistics.multiplicity import benjamini_hochberg


def pattern_table(reviews: pd.DataFrame, patterns: Sequence[str], groups: tuple[str, str]) -> pd.DataFrame:
    """Fisher's exact test a pattern, with Benjamini and Hochberg's adjustment.

    `reviews` has `kind` (one of `groups`) and a 0/1 column a pattern, one row a tile (the majority of its reviewers).
    Columns: pattern, first, first_total, second, second_total, odds_ratio, low, high, p, p_adjusted.
    """
    first, second = (reviews[reviews["kind"] == group] for group in groups)
    rows = []
    for pattern in patterns:
        a, c = int(first[pattern].sum()), int(second[pattern].sum())
        b, d = len(first) - a, len(second) - c
        test = scipy.stats.fisher_exact([[a, b], [c, d]])
        low, high = scipy.stats.contingency.odds_ratio([[a, b], [c, d]]).confidence_interval(0.95)
        rows.append((pattern, a, a + b, c, c + d, float(test.statistic), float(low), float(high), float(test.pvalue)))
    columns = ["pattern", "first", "first_total", "second", "second_total", "odds_ratio", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_adjusted=benjamini_hochberg(table["p"].to_numpy()))


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two raters' classes (1960); nan where both use one and the same class throughout."""
    from sklearn.metrics import cohen_kappa_score

    several = len(np.unique(np.concatenate([first, second]))) > 1
    return float(cohen_kappa_score(first, second)) if several else np.nan


def fleiss_kappa(ratings: np.ndarray) -> float:
    """Fleiss' kappa of `ratings` (subjects, raters) of classes (1971); nan where there is one class only."""
    levels = np.unique(ratings)
    counts = np.stack([(ratings == level).sum(axis=1) for level in levels], axis=1)
    raters = ratings.shape[1]
    agreement = ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1))
    expected = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return float((agreement.mean() - expected) / (1 - expected)) if expected < 1 else np.nan
