"""Mean features by patient -> how AUROC grows with patients, tiles and sites, and what permuted labels give.

The model is a ridge regression of fixed strength on the mean of a patient's features, pooled over the training sites: quick, so
that it can be trained often. It is tested on the external sites.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from mil.metrics import delong
from mil.metrics.arms import EXTERNAL_SITES, TRAINING_SITES, scopes
from mil.metrics.baselines.logistic import fit_together
from mil.metrics.baselines.protocol import permuted_predictions
from mil.metrics.folds import within_folds
from mil.rng import rng

STRENGTH = 0.1
SHARES = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
TILES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FEWEST = 8
MAX_SITES = 6


def permutations(means: pd.DataFrame, bags: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """site ("training sites" within folds, "external sites"), permutation, value: AUROC of models taught permuted labels."""
    rows = []
    for number in range(count):
        predictions = permuted_predictions(means, bags, seed, number)
        inside = within_folds(predictions[predictions["repeat"] == 0])
        rows += [(TRAINING_SITES, number, row.value) for row in inside[inside["site"] == TRAINING_SITES].itertuples()]
        for scope in scopes(predictions):
            if scope.site == EXTERNAL_SITES and scope.has_pairs:
                rows.append((EXTERNAL_SITES, number, _within(scope.labels, scope.scores, scope.sites)))
    return pd.DataFrame(rows, columns=["site", "permutation", "value"])


def patients_curve(means: pd.DataFrame, bags: pd.DataFrame, draws: int) -> pd.DataFrame:
    """size (training patients), draw, auroc within external sites; patients are drawn within site and label."""
    values = _values(means, bags)
    training = np.flatnonzero((bags["role"] == "train").to_numpy())
    strata = (bags["site"] + " " + bags["label"].astype(str)).to_numpy()
    rows = []
    for share in SHARES if _testable(bags) else ():
        for number in range(draws if share < 1 else 1):
            stream = rng(0, "sample size", share, number)
            chosen = np.concatenate(
                [_some(stream, training[strata[training] == stratum], share) for stratum in np.unique(strata[training])]
            )
            if len(chosen) >= FEWEST and delong.both_classes(bags["label"].to_numpy()[chosen]):
                rows.append((len(chosen), number, _fit_and_score(values, bags, chosen)))
    return pd.DataFrame(rows, columns=["size", "draw", "auroc"])


def tiles_curve(tiles: Mapping[str, np.ndarray], bags: pd.DataFrame, draws: int) -> pd.DataFrame:
    """size (tiles drawn from every bag, in training and test), draw, auroc; `tiles` are features (n, width) by patient."""
    largest = int(np.median([len(bag) for bag in tiles.values()]))
    training = np.flatnonzero((bags["role"] == "train").to_numpy())
    rows = []
    for size in [count for count in TILES if count <= largest] if _testable(bags) else []:
        for number in range(draws):
            stream = rng(0, "tiles", size, number)
            drawn = [tiles[patient][_few(stream, len(tiles[patient]), size)] for patient in bags["patient_id"]]
            values = np.stack([bag.mean(axis=0, dtype=np.float64) for bag in drawn])
            rows.append((size, number, _fit_and_score(values, bags, training)))
    return pd.DataFrame(rows, columns=["size", "draw", "auroc"])


def site_value(means: pd.DataFrame, bags: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """trained_on, sites, value, low, high: AUROC within external sites of models trained on every set of training sites."""
    values, labels, site = _values(means, bags), bags["label"].to_numpy(dtype=int), bags["site"].to_numpy()
    outside = (bags["role"] == "external").to_numpy()
    training = sorted(bags.loc[~outside, "site"].unique())[:MAX_SITES]
    rows = []
    for size in range(1, len(training) + 1) if _testable(bags) else ():
        for chosen in combinations(training, size):
            inside = np.isin(site, chosen)
            if delong.both_classes(labels[inside]):
                model = fit_together([values[inside]], [labels[inside]], STRENGTH)
                scores = model.chance(values[outside])
                found = delong.within_interval(labels[outside], scores, site[outside], confidence)
                rows.append(("+".join(chosen), size, *found))
    return pd.DataFrame(rows, columns=["trained_on", "sites", "value", "low", "high"])


def _values(means: pd.DataFrame, bags: pd.DataFrame) -> np.ndarray:
    return means.reindex(bags["patient_id"]).to_numpy(dtype=float)


def _testable(bags: pd.DataFrame) -> bool:
    """Whether any external site has patients of both classes."""
    outside = bags[bags["role"] == "external"]
    return bool((outside.groupby("site")["label"].nunique() > 1).any())


def _fit_and_score(values: np.ndarray, bags: pd.DataFrame, chosen: np.ndarray) -> float:
    labels = bags["label"].to_numpy(dtype=int)
    outside = (bags["role"] == "external").to_numpy()
    model = fit_together([values[chosen]], [labels[chosen]], STRENGTH)
    return _within(labels[outside], model.chance(values[outside]), bags.loc[outside, "site"].to_numpy())


def _within(labels: np.ndarray, scores: np.ndarray, sites: np.ndarray) -> float:
    return float(delong.within(labels, scores, sites).auroc[0])


def _some(stream: np.random.Generator, members: np.ndarray, share: float) -> np.ndarray:
    return stream.choice(members, max(round(share * len(members)), 1), replace=False)


def _few(stream: np.random.Generator, there: int, wanted: int) -> np.ndarray:
    return stream.choice(there, min(wanted, there), replace=False)
