"""Scores and the patient table -> AUROC in subgroups, with a test of whether they differ."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from mil.endpoints.binary import fixed_interval
from mil.errors import MilError, nearest
from mil.schemas import SUBGROUPS
from mil.statistics import delong
from mil.statistics.intervals import normal_quantile
from mil.statistics.multiplicity import holm

MAX_LEVELS = 6  # of a text column; further ones stand together in a row that says how many they are
MIN_OF_A_CLASS = 3  # patients of either class below which a subgroup's AUROC is not drawn


def subgroup_aurocs(
    scores: pd.DataFrame, patients: pd.DataFrame, columns: Sequence[str], confidence: float = 0.95
) -> pd.DataFrame:
    """AUROC over pairs of one site for everybody and each level of `columns` (numbers are cut at their median); `SUBGROUPS`.

    `scores` has patient_id, site, label, score. `p_differs`: chi-squared test that a variable's AUROCs (logit scale) are
    equal; `p_adjusted`: with Holm's correction over the variables. Levels with too few patients of a class have blanks, those of
    fewer than ten at several sites no interval.
    """
    by_patient = patients.set_index("patient_id").reindex(scores["patient_id"])
    rows = [("All", "", *_auroc(scores, confidence), np.nan)]
    for column in columns:
        if column != "site" and column not in by_patient.columns:
            raise MilError(
                f"metrics.subgroups: column '{column}' is not in the patient table; {nearest(column, map(str, by_patient))}"
            )
        values = scores["site"] if column == "site" else by_patient[column].fillna("")
        levels = _each(np.asarray(values)) if column == "site" else _levels(np.asarray(values, dtype=str))
        aurocs = [(level, _auroc(scores[chosen], confidence)) for level, chosen in levels]
        p = _equal([numbers for _, numbers in aurocs], confidence)
        rows += [(column, level, *numbers, p) for level, numbers in aurocs]
    table = pd.DataFrame(rows, columns=SUBGROUPS[:-1])
    by_variable = table.drop_duplicates("variable").set_index("variable")["p_differs"]
    adjusted = pd.Series(holm(by_variable.to_numpy(dtype=float)), by_variable.index)
    return table.assign(p_adjusted=table["variable"].map(adjusted))


def _each(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every site, however many there are and whatever they are called."""
    for level in sorted(set(values)):
        yield str(level), values == level


def _levels(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each level's name and its patients, of many those with most patients, and the others together; blanks are in none."""
    known = values != ""
    numbers = pd.to_numeric(pd.Series(values[known]), errors="coerce")
    distinct = np.unique(values[known])
    if len(numbers) and numbers.notna().all() and len(distinct) > MAX_LEVELS:
        median = float(numbers.median())
        as_numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy()
        yield f"< {median:g}", known & (as_numbers < median)
        yield f"≥ {median:g}", known & (as_numbers >= median)
        return
    counts = pd.Series(values[known]).value_counts().sort_index()
    alone = counts.sort_values(ascending=False, kind="stable").index[:MAX_LEVELS]
    for level in sorted(alone):
        yield str(level), values == level
    if others := len(distinct) - len(alone):
        yield f"{others} other level{'s' if others > 1 else ''}", known & ~np.isin(values, alone)


def _auroc(scores: pd.DataFrame, confidence: float) -> tuple[int, int, float, float, float]:
    labels = scores["label"].to_numpy()
    numbers = len(labels), int(labels.sum())
    sites = scores["site"].to_numpy()
    if min(delong.numbers_in_pairs(labels, sites)) < MIN_OF_A_CLASS:
        return *numbers, np.nan, np.nan, np.nan
    return *numbers, *fixed_interval(labels, scores["score"].to_numpy(), sites, confidence)[:3]


def _equal(groups: list[tuple[int, int, float, float, float]], confidence: float) -> float:
    """Cochran's Q of the AUROCs on the logit scale, errors from their intervals."""
    usable = [(area, low, high) for _, _, area, low, high in groups if 0 < area < 1 and low > 0 and high < 1]
    if len(usable) < 2:
        return np.nan
    area, low, high = np.array(usable).T
    logits = np.log(area / (1 - area))
    variance = ((np.log(high / (1 - high)) - np.log(low / (1 - low))) / (2 * normal_quantile(confidence))) ** 2
    mean = np.average(logits, weights=1 / variance)
    return float(chdtrc(len(usable) - 1, (((logits - mean) ** 2) / variance).sum()))
