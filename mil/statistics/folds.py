"""Predictions -> AUROC fold by fold, and tests on folds that allow for their overlap."""

import numpy as np
import pandas as pd

from mil.statistics.arms import APART, ENSEMBLE, EXTERNAL_SITES, OTHER_SITES, OWN_SITE, TRAINING_SITES, patient_scores
from mil.statistics.differences import Difference, difference_of
from mil.statistics.ranking import midranks

KEYS = ("trained_on", "split", "site")


def fold_aurocs(predictions: pd.DataFrame) -> pd.DataFrame:
    """trained_on, split, site, repeat, fold, patients, positives, auroc: each fold's models alone, derived arms included.

    Folds in which a site has patients of one class only are left out; groups of sites count pairs of the same site.
    """
    scores = patient_scores(predictions, APART)
    keys = ["trained_on", "split", "site", *APART]
    scores["placement"] = _placed(scores)
    scores["negatives"] = 1 - scores["label"]
    placed = scores["placement"].where(scores["label"] == 1)
    sites = scores.assign(positive=placed).groupby(keys, sort=False).agg(
        patients=("label", "size"), positives=("label", "sum"), negatives=("negatives", "sum"), auroc=("positive", "mean")
    )  # fmt: skip
    sites = sites.reset_index().assign(pairs=lambda table: table["positives"] * table["negatives"])
    sites["wins"] = (sites["auroc"] * sites["pairs"]).fillna(0)
    training = set(scores.loc[scores["role"] == "train", "site"])
    rows = []
    for (trained_on, split), arm in sites.groupby(["trained_on", "split"], sort=False):
        if trained_on not in {OWN_SITE, OTHER_SITES} and not (trained_on == ENSEMBLE and split == "transfer"):
            rows.append(arm)
        whole = set(arm["site"]) == training and (split == "held_out" or trained_on == OTHER_SITES)
        if split == "external" or whole:
            summed = arm.groupby(list(APART))[["patients", "positives", "pairs", "wins"]].sum().reset_index()
            group = EXTERNAL_SITES if split == "external" else TRAINING_SITES
            rows.append(
                summed.assign(trained_on=trained_on, split=split, site=group, auroc=summed["wins"] / summed["pairs"])
            )
    columns = [*KEYS, *APART, "patients", "positives", "auroc"]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*columns, "pairs"])
    return table.loc[table["pairs"] > 0, columns].sort_values([*APART, *KEYS], ignore_index=True)


def _placed(scores: pd.DataFrame) -> np.ndarray:
    """Placement of every row of `patient_scores` by repeat and fold, among the patients of its arm, site and fold."""
    segment = scores.groupby(["trained_on", "split", "site", *APART], sort=False).ngroup().to_numpy()
    order = np.argsort(segment, kind="stable")
    labels, values, placed = scores["label"].to_numpy(), scores["score"].to_numpy(), np.full(len(scores), np.nan)
    for rows in np.split(order, np.flatnonzero(np.diff(segment[order])) + 1) if len(order) else ():
        placed[rows] = _placements(labels[rows], values[rows])
    return placed


def _placements(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each positive, the share of negatives below it, ties one half; nan for negatives, and where there are none."""
    is_positive, placed = labels == 1, np.full(len(labels), np.nan)
    negatives = int((~is_positive).sum())
    if negatives:
        placed[is_positive] = (midranks(scores)[is_positive] - midranks(scores[is_positive])) / negatives
    return placed


def corrected_resampled_t(
    differences: np.ndarray, test_share: float, confidence: float = 0.95, widest: float = 1.0
) -> Difference:
    """Nadeau and Bengio's corrected resampled t-test (2003, Mach Learn 52:239) on differences of k folds (all repeats).

    `test_share` is the number of test patients over that of training patients, 1 / (folds - 1) for cross-validation.
    Training sets overlap, so the variance of the mean is (1 / k + test_share) times that of the folds, not 1 / k. Repeats use
    the same patients and bring no degrees of freedom: these are one less than the folds of one repeat, not k - 1 (which
    finds 8 % differences where 5 % is said). `widest`: the largest difference that can be.
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    k = len(differences)
    mean = float(differences.mean()) if k else np.nan
    spread = float(differences.var(ddof=1)) if k > 1 else np.nan
    if k > 1 and spread == 0 and mean == 0:
        return difference_of(0.0, 0.0, confidence)
    if k < 2 or spread == 0:  # one fold, or the same in every fold: nothing is known of the error
        return Difference(mean, np.nan, np.nan, np.nan, np.nan)
    degrees = min(k - 1, max(round(1 / test_share), 1))
    return difference_of(mean, (1 / k + test_share) * spread, confidence, degrees, widest)
