"""Mean features by patient -> how AUROC grows with patients, tiles and sites, and what permuted labels give.

The models are ridge regressions (logistic, for permutations linear) of fixed strength on the mean of a patient's features, pooled
over the training sites: quick, so that they can be trained often. Curves are tested on the external sites.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.bags.table import outer_folds
from mil.baselines.protocol import permuted_labels
from mil.endpoints.binary import fixed_interval
from mil.rng import rng
from mil.statistics import delong
from mil.statistics.arms import EXTERNAL_SITES, TRAINING_SITES
from mil.statistics.ranking import pairs_within

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTH = 0.1
SHARES = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
TILES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FEWEST = 8
MAX_SITES = 6


def permutations(means: pd.DataFrame, bags: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """site ("training sites" within folds, "external sites"), permutation, value: AUROC of models taught permuted labels.

    Labels are permuted within each site. The models are ridge regressions on the folds of the first repeat, linear in the
    labels, so that all permutations are fitted at once; pairs of patients of one site (and one fold) count.
    """
    bags = bags.reset_index(drop=True)
    labels = np.stack([permuted_labels(bags, seed, number)["label"].to_numpy(dtype=float) for number in range(count)])
    values, sites = _values(means, bags), bags["site"].to_numpy()
    outside = (bags["role"] == "external").to_numpy()
    folds = [fold for repeat, fold in outer_folds(bags) if repeat == 0]
    outer = pd.to_numeric(bags["repeat0"], errors="coerce").to_numpy()
    inside, external = np.zeros((2, count)), np.zeros((count, int(outside.sum())))
    for fold in folds:
        train, judged = ~outside & (outer != fold), ~outside & (outer == fold)
        inside += pairs_within(_ridge(values, labels, train, judged), labels[:, judged], sites[judged])
        external += _ridge(values, labels, train, outside)
    by_group = {TRAINING_SITES: inside, EXTERNAL_SITES: pairs_within(external, labels[:, outside], sites[outside])}
    parts = [
        pd.DataFrame({"site": group, "permutation": np.arange(count), "value": wins / np.maximum(pairs, 1)})[pairs > 0]
        for group, (wins, pairs) in by_group.items()
    ]
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["site", "permutation", "value"])


def _ridge(values: np.ndarray, labels: np.ndarray, train: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Scores (permutations, judged) of a ridge regression on scaled values, its strength the number of features."""
    from sklearn.preprocessing import StandardScaler

    scaling = StandardScaler().fit(values[train])
    x, y = ((values[chosen] - scaling.mean_) / scaling.scale_ for chosen in (train, judged))  # `judged` may be nobody
    centred = labels[:, train] - labels[:, train].mean(axis=1, keepdims=True)
    patients, width = x.shape
    if patients > width:
        return (centred @ x) @ np.linalg.solve(x.T @ x + width * np.eye(width), y.T)
    return centred @ np.linalg.solve(x @ x.T + width * np.eye(patients), x @ y.T)


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
    """trained_on, sites, value, low, high, method: AUROC within external sites of models trained on every set of training sites."""
    values, labels, site = _values(means, bags), bags["label"].to_numpy(dtype=int), bags["site"].to_numpy()
    outside = (bags["role"] == "external").to_numpy()
    training = sorted(bags.loc[~outside, "site"].unique())[:MAX_SITES]
    rows = []
    for size in range(1, len(training) + 1) if _testable(bags) else ():
        for chosen in combinations(training, size):
            inside = np.isin(site, chosen)
            if delong.both_classes(labels[inside]):
                scores = _fitted(values[inside], labels[inside]).predict_proba(values[outside])[:, 1]
                interval = fixed_interval(labels[outside], scores, site[outside], confidence)
                rows.append(("+".join(chosen), size, *interval))
    return pd.DataFrame(rows, columns=["trained_on", "sites", "value", "low", "high", "method"])


def _values(means: pd.DataFrame, bags: pd.DataFrame) -> np.ndarray:
    return means.reindex(bags["patient_id"]).to_numpy(dtype=float)


def _testable(bags: pd.DataFrame) -> bool:
    """Whether any external site has patients of both classes."""
    outside = bags[bags["role"] == "external"]
    return bool((outside.groupby("site")["label"].nunique() > 1).any())


def _fit_and_score(values: np.ndarray, bags: pd.DataFrame, chosen: np.ndarray) -> float:
    labels = bags["label"].to_numpy(dtype=int)
    outside = (bags["role"] == "external").to_numpy()
    scores = _fitted(values[chosen], labels[chosen]).predict_proba(values[outside])[:, 1]
    return _within(labels[outside], scores, bags.loc[outside, "site"].to_numpy())


def _fitted(values: np.ndarray, labels: np.ndarray) -> "Pipeline":
    """Logistic ridge regression of fixed strength on scaled values."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # conjugate gradients: no matrix of features x features
    model = LogisticRegression(C=STRENGTH, tol=1e-8, solver="newton-cg")
    return make_pipeline(StandardScaler(), model).fit(values, labels)


def _within(labels: np.ndarray, scores: np.ndarray, sites: np.ndarray) -> float:
    return float(delong.within(labels, scores, sites).auroc[0])


def _some(stream: np.random.Generator, members: np.ndarray, share: float) -> np.ndarray:
    return stream.choice(members, max(round(share * len(members)), 1), replace=False)


def _few(stream: np.random.Generator, there: int, wanted: int) -> np.ndarray:
    return stream.choice(there, min(wanted, there), replace=False)
