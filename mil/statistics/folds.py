"""Predictions -> AUROC fold by fold, and tests on folds that allow for their overlap."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OTHER_SITES, OWN_SITE, TRAINING_SITES, patient_scores
from mil.statistics.delong import Difference, difference_of, logit_bounds

KEYS = ("trained_on", "split", "site")
APART = ("repeat", "fold")


@dataclass(frozen=True)
class FoldTest:
    """Mean difference over folds with its interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


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


def within_folds(predictions: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """AUROC over pairs of patients of one site judged by one model: trained_on, split, site, patients, positives, value, low, high.

    Scores of different folds come from different models; laid together they rank patients partly by their fold, which
    for a model that knows nothing is worse than chance (a fold short of positives leaves a training set rich in them).
    Here a patient's placement (share of the other class in the same fold on the right side, mean over repeats) takes the
    part it has in DeLong's variance; the interval is on the logit scale.
    """
    rows = []
    for key, table in placements_in_folds(predictions).items():
        positive, negative = (table.loc[table["label"] == label, "placement"].to_numpy() for label in (1, 0))
        rows.append((*key, len(table), len(positive), *_interval(positive, negative, confidence)))
    return pd.DataFrame(rows, columns=[*KEYS, "patients", "positives", "value", "low", "high"])


def placements_in_folds(predictions: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """By trained_on, split and site: label and placement of each patient (index), mean over the repeats; see `within_folds`.

    The keys are those of `scopes`. Pairs are of one site, so on the training sites together a patient has the placement
    that they have at their own.
    """
    scores = patient_scores(predictions[predictions["split"] != "external"], APART)
    known = scores.assign(placement=_placed(scores)).dropna(subset=["placement"])
    found: dict[tuple[str, ...], pd.DataFrame] = {}
    training = set(scores.loc[scores["role"] == "train", "site"])
    for (trained_on, split), arm in known.groupby(["trained_on", "split"], sort=False):
        by_patient = arm.groupby("patient_id").agg(
            label=("label", "first"), placement=("placement", "mean"), site=("site", "first")
        )
        if trained_on not in {OWN_SITE, OTHER_SITES}:
            for site, part in by_patient.groupby("site"):
                found[str(trained_on), str(split), str(site)] = part[["label", "placement"]]
        everywhere = (
            set(scores.loc[(scores["trained_on"] == trained_on) & (scores["split"] == split), "site"]) == training
        )
        if everywhere and (split == "held_out" or trained_on == OTHER_SITES):
            found[str(trained_on), str(split), TRAINING_SITES] = by_patient[["label", "placement"]]
    return found


def paired_in_folds(first: pd.DataFrame, second: pd.DataFrame, confidence: float = 0.95) -> Difference:
    """Difference of two AUROCs within folds with DeLong's paired test, from `placements_in_folds` of the same patients."""
    both = first.join(second, how="inner", lsuffix="_first", rsuffix="_second")
    change = (both["placement_first"] - both["placement_second"]).to_numpy()
    positive, negative = (change[(both["label_first"] == label).to_numpy()] for label in (1, 0))
    if min(len(positive), len(negative)) < 2:
        return Difference(float(np.mean(change)) if len(change) else np.nan, np.nan, np.nan, np.nan, np.nan)
    variance = float(positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative))
    return difference_of(float(positive.mean() + negative.mean()) / 2, variance, confidence)


def _placed(scores: pd.DataFrame) -> np.ndarray:
    """Placement of every row of `patient_scores` by repeat and fold, among the patients of its arm, site and fold."""
    segment = scores.groupby(["trained_on", "split", "site", *APART], sort=False).ngroup().to_numpy()
    order = np.argsort(segment, kind="stable")
    labels, values, placed = scores["label"].to_numpy(), scores["score"].to_numpy(), np.full(len(scores), np.nan)
    for rows in np.split(order, np.flatnonzero(np.diff(segment[order])) + 1) if len(order) else ():
        placed[rows] = _placements(labels[rows], values[rows])
    return placed


def _placements(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each patient, the share of the other class that they are on the right side of, ties one half; nan where it is empty."""
    is_positive = labels == 1
    numbers = int(is_positive.sum()), int((~is_positive).sum())
    if not all(numbers):
        return np.full(len(labels), np.nan)
    everyone, placed = stats.rankdata(scores), np.empty(len(labels))
    placed[is_positive] = (everyone[is_positive] - stats.rankdata(scores[is_positive])) / numbers[1]
    placed[~is_positive] = 1 - (everyone[~is_positive] - stats.rankdata(scores[~is_positive])) / numbers[0]
    return placed


def _interval(positive: np.ndarray, negative: np.ndarray, confidence: float) -> tuple[float, float, float]:
    value = float(positive.mean() + negative.mean()) / 2
    if min(len(positive), len(negative)) < 2:
        return value, np.nan, np.nan
    variance = float(positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative))
    return logit_bounds(value, variance, len(positive), len(negative), confidence)


def corrected_resampled_t(differences: np.ndarray, test_share: float, confidence: float = 0.95) -> FoldTest:
    """Nadeau and Bengio's corrected resampled t-test (2003, Mach Learn 52:239) on differences of k folds (all repeats).

    `test_share` is the number of test patients over that of training patients, 1 / (folds - 1) for cross-validation.
    Training sets overlap, so the variance of the mean is (1 / k + test_share) times that of the folds, not 1 / k.
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    k = len(differences)
    if k < 2:
        return FoldTest(float(differences.mean()) if k else np.nan, np.nan, np.nan, np.nan)
    mean, spread = float(differences.mean()), float(differences.var(ddof=1))
    if spread == 0:  # the same in every fold: no difference at all, or none whose error can be told
        return FoldTest(0.0, 0.0, 0.0, 1.0) if mean == 0 else FoldTest(mean, np.nan, np.nan, np.nan)
    error = np.sqrt((1 / k + test_share) * spread)
    half = float(stats.t.ppf(0.5 + confidence / 2, k - 1)) * error
    return FoldTest(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, k - 1)))
