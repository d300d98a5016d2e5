"""Held-out predictions of cross-validation -> AUROC, its interval and paired tests that allow for shared training patients.

What is estimated: the expected AUROC of models trained on this share of such a cohort, on new patients of the same sites. The
estimate is the share of pairs (a positive and a negative of one site, both judged by one model) that are in the right order,
over all folds and repeats. Scores of different folds are never compared: a fold short of positives leaves a training set rich in
them, so that models which know nothing rank below 0.5 over folds laid together.

Its variance for given models is clustered by patient in both classes (as of Cameron, Gelbach and Miller 2011), which for one
fold is DeLong's without its excess. But the models are not given: patient i trains the model of patient j and j that of i, so each
pair of patients is counted twice. For a score that is linear in a mean over training patients this doubles the variance where the
score is noise, and leaves it as it is where the score hardly depends on who trained it. With `u`, the share of a score's
variance within class that is noise of training, the factor is (1 + u)^2 (2 - u) / 2. `u` is measured by how well the repeats
agree: their training sets share all but one part in the number of folds. `benchmarks/held_out.py` compares the intervals and tests
with others; below `FEWEST` patients of a class or `FEWEST_PAIRS` pairs none held, so none is given.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from mil.statistics.delong import newcombe_interval
from mil.statistics.differences import Difference, difference_of

FEWEST = 10
"""Patients of the rarer class below which there is no interval and no test."""
FEWEST_PAIRS = 40
"""Pairs of one fold's patients (a repeat) below which there is no interval and no test."""
DIMENSIONS = 20
"""Independent directions of a score's noise, assumed where a single repeat cannot show how much of the score is noise."""
MOST_NOISE = 1.3
"""Upper limit of `u` below 0.5: there the estimate is far too low more often than it is far too high."""
NO_VARIANCE = "Newcombe, no variance"
METHOD = "pairs within folds, overlap of training sets counted"


@dataclass(frozen=True)
class Pairs:
    """One arm's pairs of a positive and a negative of the same site, one block (positives, negatives) per site."""

    counts: tuple[np.ndarray, ...]
    """Models that judged both patients."""
    wins: tuple[np.ndarray, ...]
    """Models that score the positive above the negative; ties count one half."""
    noise: float | None
    """Share of the scores' variance within class that is noise of training; None where there is one repeat."""
    repeats: int

    @property
    def total(self) -> float:
        """Pairs, counted once per model."""
        return float(sum(block.sum() for block in self.counts))

    @property
    def numbers(self) -> tuple[int, int]:
        """Positives and negatives that are part of a pair."""
        each = [(block.any(axis=1).sum(), block.any(axis=0).sum()) for block in self.counts]
        return int(sum(positives for positives, _ in each)), int(sum(negatives for _, negatives in each))

    @property
    def auroc(self) -> float:
        """Share of pairs in the right order; nan without a pair."""
        return float(sum(block.sum() for block in self.wins)) / self.total if self.total else np.nan

    @property
    def refusal(self) -> str:
        """Why there is no interval; '' where there is one."""
        positives, negatives = self.numbers
        if not self.total:
            return "not defined: no fold has patients of both classes at one site"
        if min(positives, negatives) < FEWEST:
            return (
                f"no interval: {positives} positive and {negatives} negative patients in pairs; {FEWEST} of each needed"
            )
        pairs = self.total / self.repeats
        return f"no interval: {pairs:.0f} pairs within folds; {FEWEST_PAIRS} needed" if pairs < FEWEST_PAIRS else ""

    def variance(self) -> tuple[float, float]:
        """Variance of the AUROC for given models, and its degrees of freedom."""
        area = self.auroc
        return clustered(
            [wins - area * counts for wins, counts in zip(self.wins, self.counts, strict=True)], self.total
        )

    def inflation(self) -> float:
        """How many times the variance for given models the variance is."""
        return inflation(self.auroc, self.variance()[0], self.noise, 0.5)


def inflation(value: float, variance: float, noise: float | None, chance: float) -> float:
    """How many times `variance` (for given models) of a held-out `value` its variance is; see the head of this file."""
    if noise is None:
        signal = max((value - chance) / np.sqrt(variance) - 1, 0.0) if variance > 0 else 0.0
        part = signal**2 / (2 * DIMENSIONS)
        noise = float(1 + part - np.sqrt(part**2 + 2 * part))
    noise = min(max(noise, 0.0), 1.0 if value >= chance else MOST_NOISE)
    return (1 + noise) ** 2 * (2 - min(noise, 1.0)) / 2


def pairs_of(folds: pd.DataFrame, within_sites: bool = True) -> Pairs:
    """Pairs of `folds` (repeat, fold, patient_id, site, label, score); of patients of the same site or of all."""
    counts, wins = [], []
    models = folds.groupby(["repeat", "fold"]).ngroup().to_numpy()
    sites = folds["site"].to_numpy() if within_sites else np.zeros(len(folds))
    labels, patients, scores = (folds[name].to_numpy() for name in ("label", "patient_id", "score"))
    for site in np.unique(sites):
        here, sides = sites == site, []
        for label in (1, 0):
            rows = np.flatnonzero(here & (labels == label))
            known, columns = np.unique(patients[rows], return_inverse=True)
            side = np.full((models.max() + 1, len(known)), np.nan)
            side[models[rows], columns] = scores[rows]
            sides.append(side)
        number, right = np.zeros((2, sides[0].shape[1], sides[1].shape[1]))
        for positive, negative in zip(*sides, strict=True):
            block = np.ix_(np.flatnonzero(np.isfinite(positive)), np.flatnonzero(np.isfinite(negative)))
            gap = positive[block[0]] - negative[block[1]]
            number[block] += 1
            right[block] += (gap > 0) + 0.5 * (gap == 0)
        counts.append(number)
        wins.append(right)
    return Pairs(tuple(counts), tuple(wins), noise_share(folds), max(folds["repeat"].nunique(), 1))


def noise_share(folds: pd.DataFrame) -> float | None:
    """`u` from the agreement of repeats; None where patients are not held out once in each of two or more repeats."""
    if folds["repeat"].nunique() < 2 or folds.duplicated(["repeat", "patient_id"]).any():
        return None
    centre = folds.groupby(["repeat", "site", "label"])["score"].transform("mean")
    wide = folds.assign(score=folds["score"] - centre).pivot(index="patient_id", columns="repeat", values="score")
    values = wide.dropna().to_numpy()
    squares = float((values**2).mean()) if len(values) else 0.0
    if not squares > 0:
        return 1.0
    repeats = values.shape[1]
    together = float((values.sum(axis=1) ** 2).mean()) - repeats * squares
    return (1 - together / (repeats * (repeats - 1) * squares)) * folds["fold"].nunique()


def clustered(deviations: list[np.ndarray], total: float) -> tuple[float, float]:
    """Variance of sum / total of `deviations` (positives, negatives) that share patients, and its degrees of freedom.

    Squares of each patient's sum, both classes, less those of single pairs, which stand in both; n / (n - 1) for the estimated mean.
    """
    of_pairs, parts = sum(float((block**2).sum()) for block in deviations) / total**2, []
    for axis in (1, 0):
        sums = np.concatenate([block.sum(axis=axis) for block in deviations])
        number = len(sums)
        parts.append((float((sums**2).sum()) / total**2 * number / max(number - 1, 1), max(number - 1, 1)))
    whole = sum(part for part, _ in parts)
    if not whole > 0:
        return 0.0, np.inf
    variance = whole - of_pairs
    degrees = whole**2 / sum(part**2 / number for part, number in parts)
    return (variance if variance > 0 else max(part for part, _ in parts)), degrees


def low_by_chance(positives: int, negatives: int) -> float:
    """The held-out AUROC below which one in twenty cohorts comes out whose labels mean nothing; at least 0.

    The variance of given scores that know nothing, doubled as above; `benchmarks/held_out.py nothing` compares it with trained cohorts.
    """
    variance = (positives + negatives + 1) / (6 * positives * negatives)
    return max(0.0, float(0.5 + ndtri(0.05) * np.sqrt(variance)))


def interval(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float, float, str]:
    """AUROC, its interval on the logit scale, and the method or why there is no interval."""
    area = pairs.auroc
    if pairs.refusal:
        return area, np.nan, np.nan, pairs.refusal
    variance, degrees = pairs.variance()
    if not 0 < area < 1 or not variance > 0:
        return area, *newcombe_interval(area, *pairs.numbers, confidence), NO_VARIANCE
    reach = float(stdtrit(degrees, 0.5 + confidence / 2)) * np.sqrt(variance * pairs.inflation())
    centre, half = np.log(area / (1 - area)), reach / (area * (1 - area))
    return area, float(1 / (1 + np.exp(half - centre))), float(1 / (1 + np.exp(-half - centre))), METHOD


def paired(first: Pairs, second: Pairs, confidence: float = 0.95) -> tuple[Difference, str]:
    """Difference of two arms on the same pairs with its test, and the method or why there is no test."""
    difference = first.auroc - second.auroc
    reason = first.refusal or second.refusal
    if reason:
        return Difference(difference, np.nan, np.nan, np.nan, np.nan), reason.replace("interval", "test", 1)
    deviations = [
        wins - other - difference * counts
        for wins, other, counts in zip(first.wins, second.wins, first.counts, strict=True)
    ]
    variance, degrees = clustered(deviations, first.total)
    inflation = (first.inflation() + second.inflation()) / 2
    return difference_of(difference, variance * inflation, confidence, degrees), METHOD
