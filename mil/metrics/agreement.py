"""Filled review sheets -> how often patterns stand in each kind of tile, and how far the reviewers agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy

from mil.errors import MilError
from mil.schemas import REVIEWS
from mil.statistics.multiplicity import benjamini_hochberg
from mil.tables import read_text_table, require_columns

if TYPE_CHECKING:
    from mil.results.results import Results


TILE_KINDS = ("top", "bottom")
"""Tiles of the highest and of the lowest attention."""


def reviewed(results: "Results") -> pd.DataFrame:
    """Table `REVIEWS` of the filled sheets that the settings name; without rows before there are any, or before their keys are drawn."""
    spec = results.config.figures
    keys = [results.folder / f"figures/review_sheet.{site}/key.csv" for site in results.sites]
    keys = [read_text_table(path, "review key") for path in keys if path.is_file()]
    if not spec.reviews or not keys:
        return pd.DataFrame(columns=REVIEWS)
    sheets = [read_sheet(Path(path), spec.patterns) for path in spec.reviews]
    together = majority(sheets, spec.patterns).join(pd.concat(keys).set_index("tile")["kind"], how="inner")
    table = pattern_table(together.reset_index(), spec.patterns, results.config.metrics.confidence)
    kappas = [_kappa([sheet[pattern].to_numpy() for sheet in sheets]) for pattern in spec.patterns]
    return table.assign(kappa=kappas, reviewers=len(sheets))[list(REVIEWS)]


def pattern_table(reviews: pd.DataFrame, patterns: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Fisher's exact test a pattern, with Benjamini and Hochberg's adjustment.

    `reviews` has `kind` (one of `TILE_KINDS`) and a 0/1 column a pattern, one row a tile (the majority of its reviewers).
    Columns: pattern, first, first_total, second, second_total, odds_ratio, low, high, p, p_adjusted.
    """
    first, second = (reviews[reviews["kind"] == kind] for kind in TILE_KINDS)
    rows = []
    for pattern in patterns:
        a, c = int(first[pattern].sum()), int(second[pattern].sum())
        b, d = len(first) - a, len(second) - c
        test = scipy.stats.fisher_exact([[a, b], [c, d]])
        low, high = scipy.stats.contingency.odds_ratio([[a, b], [c, d]]).confidence_interval(confidence)
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


def read_sheet(path: Path, patterns: tuple[str, ...]) -> pd.DataFrame:
    """One filled sheet, 0/1 by tile and pattern; a blank or another value names the tile."""
    table = read_text_table(path, "review sheet")
    require_columns(table, ("tile", *patterns), f"review sheet {path}")
    table = table.set_index("tile")[list(patterns)]
    wrong = ~table.isin(["0", "1"])
    if wrong.any(axis=None):
        tile = wrong.index[wrong.any(axis=1)][0]
        pattern = wrong.columns[wrong.loc[tile]][0]
        raise MilError(f"review sheet {path}: {tile}, {pattern} is '{table.loc[tile, pattern]}'; write 0 or 1")
    return table.astype(int).sort_index()


def majority(sheets: list[pd.DataFrame], patterns: tuple[str, ...]) -> pd.DataFrame:
    """1 where more than half of the reviewers saw the pattern; the sheets must hold the same tiles."""
    first = sheets[0]
    for number, sheet in enumerate(sheets[1:], 2):
        if not sheet.index.equals(first.index):
            raise MilError(
                f"figures.reviews: sheet {number} holds other tiles than the first; give sheets of one review"
            )
    seen = np.mean([sheet[list(patterns)].to_numpy() for sheet in sheets], axis=0)
    return pd.DataFrame((seen > 0.5).astype(int), index=first.index, columns=list(patterns))


def _kappa(ratings: list[np.ndarray]) -> float:
    if len(ratings) < 2:
        return np.nan
    if len(ratings) == 2:
        return cohen_kappa(*ratings)
    return fleiss_kappa(np.stack(ratings, axis=1))
