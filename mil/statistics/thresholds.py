"""Inner-fold predictions -> a decision threshold a model, and with it each model's vote on each patient.

The threshold is Youden's (sensitivity + specificity - 1 is largest) on the inner-fold predictions of a model's own
training patients, so no patient who is scored has a part in it.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mil.provenance import require_of_run
from mil.statistics.delong import both_classes
from mil.tables import read_table

MODEL = ["trained_on", "repeat", "fold"]


def read_inner(path: str | Path) -> pd.DataFrame | None:
    """inner.csv of a run; none where it holds no row (an endpoint without two classes)."""
    require_of_run(Path(path))
    table = read_table(path)
    return table if len(table) else None


def choose_thresholds(inner: pd.DataFrame) -> pd.DataFrame:
    """trained_on, repeat, fold, threshold; `inner` has these and patient_id, label, score of held-out inner folds."""
    rows = [
        (*key, youden(part["label"].to_numpy(), part["score"].to_numpy()))
        for key, part in inner.groupby(MODEL)
        if both_classes(part["label"].to_numpy())
    ]
    return pd.DataFrame(rows, columns=[*MODEL, "threshold"])


def youden(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold, midway between two scores, with the largest sensitivity + specificity; of equals the middle one."""
    values = np.unique(scores)
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
    called = scores[None] >= cuts[:, None]
    gain = called[:, labels == 1].mean(axis=1) - called[:, labels == 0].mean(axis=1)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[len(best) // 2]])


def vote(predictions: pd.DataFrame, thresholds: pd.DataFrame) -> pd.DataFrame:
    """`predictions` with the column `vote`: 1 where the model calls the patient positive; rows without threshold are left out."""
    voted = predictions.merge(thresholds, on=MODEL)
    return voted.assign(vote=(voted["score"] >= voted["threshold"]).astype(float))
