"""Features of all sites -> how sites differ and what kinds of tile there are: components, site classifier, clusters."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.statistics import held_out
from mil.statistics.multiplicity import benjamini_hochberg

FOLDS = 5


def components(means: pd.DataFrame, bags: pd.DataFrame) -> pd.DataFrame:
    """patient_id, site, pc1, pc2 and the share of variance of each (the same in every row); zeros where no feature varies."""
    values = StandardScaler().fit_transform(means.reindex(bags["patient_id"]).to_numpy(dtype=float))
    points, shares = np.zeros((len(values), 2)), np.zeros(2)
    if values.any():
        fitted = PCA(2, random_state=0).fit(values)
        points, shares = fitted.transform(values), fitted.explained_variance_ratio_
    return pd.DataFrame(
        {
            "patient_id": bags["patient_id"].to_numpy(),
            "site": bags["site"].to_numpy(),
            "pc1": points[:, 0],
            "pc2": points[:, 1],
            "share1": shares[0],
            "share2": shares[1],
        }
    )


def site_classifier(means: pd.DataFrame, bags: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """site, patients, value, low, high, method: AUROC of a logistic regression that tells each site from the rest, over pairs within folds."""
    values = means.reindex(bags["patient_id"]).to_numpy(dtype=float)
    rows = []
    for site in sorted(bags["site"].unique()):
        labels = (bags["site"] == site).to_numpy().astype(int)
        folds = min(FOLDS, int(labels.sum()), int((1 - labels).sum()))
        if folds < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, solver="newton-cg"))
        split = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(values, labels))
        judged = bags[["patient_id", "site"]].assign(repeat=0, fold=0, label=labels)
        judged["score"] = cross_val_predict(model, values, labels, cv=split, method="predict_proba")[:, 1]
        for fold, (_, rest) in enumerate(split):
            judged.iloc[rest, judged.columns.get_loc("fold")] = fold
        rows.append((site, int(labels.sum()), *held_out.interval(held_out.pairs_of(judged, False), confidence)))
    return pd.DataFrame(rows, columns=["site", "patients", "value", "low", "high", "method"])


def cluster_tiles(tiles: pd.DataFrame, features: np.ndarray, clusters: int) -> pd.DataFrame:
    """`tiles` (a row a tile, with patient_id, site and label) with the columns cluster and distance to its centre.

    k-means on `features` (tiles, width) standardised within each site, so that clusters are kinds of tissue and not
    scanners; without labels. Cluster 0 is the one that positive patients have most of compared with negative ones.
    """
    scaled = np.empty_like(features)
    for site in tiles["site"].unique():
        mine = (tiles["site"] == site).to_numpy()
        scaled[mine] = (features[mine] - features[mine].mean(axis=0)) / (features[mine].std(axis=0) + 1e-6)
    fitted = MiniBatchKMeans(clusters, random_state=0, n_init=5, batch_size=2048).fit(scaled)
    clustered = tiles.assign(
        cluster=fitted.labels_, distance=np.linalg.norm(scaled - fitted.cluster_centers_[fitted.labels_], axis=1)
    )
    means = shares(clustered).groupby("label").mean()
    rise = (means.loc[1] - means.loc[0]) if {0, 1} <= set(means.index) else -clustered["cluster"].value_counts()
    rank = {cluster: number for number, cluster in enumerate(rise.sort_values(ascending=False).index)}
    return clustered.assign(cluster=clustered["cluster"].map(rank))


def shares(tiles: pd.DataFrame) -> pd.DataFrame:
    """A row a patient: the share of each cluster in their tiles (columns are clusters), and label."""
    table = pd.crosstab(tiles["patient_id"], tiles["cluster"], normalize="index")
    return table.assign(label=tiles.groupby("patient_id")["label"].first().reindex(table.index))


def enrichment(table: pd.DataFrame, clusters: Sequence[int]) -> pd.DataFrame:
    """Of `shares`, by cluster: medians in positive and negative patients, Mann-Whitney's p, Benjamini-Hochberg's adjusted."""
    rows = []
    for cluster in clusters:
        positive, negative = (table.loc[table["label"] == label, cluster].to_numpy(dtype=float) for label in (1, 0))
        both = len(positive) and len(negative)
        p = float(scipy.stats.mannwhitneyu(positive, negative).pvalue) if both else np.nan
        middle = [float(np.median(part)) if len(part) else np.nan for part in (positive, negative)]
        rows.append((cluster, *middle, p))
    summary = pd.DataFrame(rows, columns=["cluster", "median_positive", "median_negative", "p"])
    return summary.assign(p_adjusted=benjamini_hochberg(summary["p"].to_numpy()))
