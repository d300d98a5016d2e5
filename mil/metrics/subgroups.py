"""Scores and the patient table -> AUROC in subgroups, with a test of whether they differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from mil.endpoints.binary import fixed_interval
from mil.errors import MilError, nearest
from mil.schemas import SUBGROUPS
from mil.statistics import delong, held_out
from mil.statistics.intervals import normal_quantile
from mil.statistics.multiplicity import holm

MAX_LEVELS = 6  # of a text column; further ones stand together in a row that says how many they are
MIN_OF_A_CLASS = 3  # patients of either class below which a subgroup's AUROC is not drawn
TOO_FEW = f"fewer than {MIN_OF_A_CLASS} patients of a class in pairs"
BOTH = "external sites DeLong, training sites pairs within folds"


@dataclass(frozen=True)
class Area:
    """AUROC of some patients with its interval; `inflation`: what the interval allows for shared training, as a factor of the variance."""

    patients: int
    positives: int
    auroc: float = np.nan
    low: float = np.nan
    high: float = np.nan
    method: str = TOO_FEW
    inflation: float = 1.0

    @property
    def cells(self) -> tuple[int, int, float, float, float, str]:
        """Of a row of `SUBGROUPS`."""
        return self.patients, self.positives, self.auroc, self.low, self.high, self.method


def subgroup_aurocs(
    scores: pd.DataFrame,
    patients: pd.DataFrame,
    columns: Sequence[str],
    confidence: float = 0.95,
    folds: pd.DataFrame | None = None,
    left_out: bool = False,
) -> pd.DataFrame:
    """AUROC over pairs of one site for everybody and each level of `columns` (numbers are cut at their median); `SUBGROUPS`.

    `scores` has patient_id, site, label, score; `folds` the rows of the held-out patients (`Scope.folds`), who are compared within
    folds as everywhere, but within one site where each was `left_out` of the models that judge it. `p_differs`: chi-squared test that a variable's AUROCs (logit scale) are equal; `p_adjusted`: with Holm's
    correction over the variables. Levels with too few patients of a class have blanks, those of fewer than ten no interval, but
    for Newcombe's at one external site.
    """
    by_patient = patients.set_index("patient_id").reindex(scores["patient_id"])
    folds = scores.iloc[:0].assign(repeat=0, fold=0) if folds is None else folds
    rows = [("All", "", *_auroc(scores, folds, confidence, left_out).cells, np.nan)]
    for column in columns:
        if column != "site" and column not in by_patient.columns:
            raise MilError(
                f"metrics.subgroups: column '{column}' is not in the patient table; {nearest(column, map(str, by_patient))}"
            )
        values = scores["site"] if column == "site" else by_patient[column].fillna("")
        levels = _each(np.asarray(values)) if column == "site" else _levels(np.asarray(values, dtype=str))
        areas = [(level, _auroc(scores[chosen], folds, confidence, left_out)) for level, chosen in levels]
        p = _equal([area for _, area in areas], confidence)
        rows += [(column, level, *area.cells, p) for level, area in areas]
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


def _auroc(scores: pd.DataFrame, folds: pd.DataFrame, confidence: float, left_out: bool) -> Area:
    labels, sites = scores["label"].to_numpy(), scores["site"].to_numpy()
    counts, numbers = (len(labels), int(labels.sum())), delong.numbers_in_pairs(labels, sites)
    if min(numbers) < MIN_OF_A_CLASS:
        return Area(*counts)
    inside = scores["patient_id"].isin(folds["patient_id"]).to_numpy()
    if not inside.any() or (left_out and len(np.unique(sites)) == 1):
        return Area(*counts, *fixed_interval(labels, scores["score"].to_numpy(), sites, confidence))
    pairs = held_out.pairs_of(folds[folds["patient_id"].isin(scores["patient_id"])])
    outside = scores[~inside]
    known_labels, known_scores, known_sites = (outside[name].to_numpy() for name in ("label", "score", "site"))
    positives, negatives = delong.numbers_in_pairs(known_labels, known_sites)
    numbers = pairs.numbers[0] + positives, pairs.numbers[1] + negatives
    if min(numbers) < MIN_OF_A_CLASS:
        return Area(*counts)
    if not _pairs(outside):
        return Area(*counts, *held_out.interval(pairs, confidence), pairs.inflation() if pairs.total else 1.0)
    if not pairs.total:
        return Area(*counts, *fixed_interval(known_labels, known_scores, known_sites, confidence))
    placed = delong.within(known_labels, known_scores, known_sites)
    areas, variances = (
        np.array([pairs.auroc, placed.auroc[0]]),
        np.array([pairs.variance()[0], placed.covariance[0, 0]]),
    )
    shares = np.array([pairs.total / pairs.repeats, _pairs(outside)])
    shares = shares / shares.sum()
    value, for_given = float(shares @ areas), float(shares**2 @ variances)
    variance = float(shares**2 @ (variances * [pairs.inflation(), 1.0]))
    if min(numbers) < delong.FEWEST:
        few = f"no interval: {numbers[0]} positive and {numbers[1]} negative patients in pairs; {delong.FEWEST} of each needed"
        return Area(*counts, value, method=few)
    bounds = delong.logit_bounds(value, variance, *numbers, confidence)
    method = BOTH if 0 < value < 1 and variance > 0 else held_out.NO_VARIANCE
    return Area(*counts, *bounds, method, variance / for_given if for_given > 0 else 1.0)


def _pairs(scores: pd.DataFrame) -> int:
    """Pairs of a positive and a negative of one site."""
    labels = scores.groupby("site")["label"]
    return int((labels.sum() * (labels.size() - labels.sum())).sum())


def _equal(areas: list[Area], confidence: float) -> float:
    """Cochran's Q of the AUROCs on the logit scale, errors from their intervals, for given models: subgroups share these."""
    usable = [area for area in areas if 0 < area.auroc < 1 and area.low > 0 and area.high < 1]
    if len(usable) < 2:
        return np.nan
    value, low, high, inflation = np.array([(area.auroc, area.low, area.high, area.inflation) for area in usable]).T
    logits = np.log(value / (1 - value))
    error = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / (2 * normal_quantile(confidence))
    variance = error**2 / inflation
    mean = np.average(logits, weights=1 / variance)
    return float(chdtrc(len(usable) - 1, (((logits - mean) ** 2) / variance).sum()))
