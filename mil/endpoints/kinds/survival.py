"""Time to an event: Harrell's c of the risk score, and groups of risk with a log-rank test."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mil.endpoints.kinds.kind import KINDS, Measure
from mil.endpoints.kinds.rows import Bootstrapped
from mil.endpoints.survival_analysis import c_index
from mil.statistics.arms import PREDICTED, Scope, scopes
from mil.statistics.from_sites import LogRank, stratified_logrank
from mil.statistics.thresholds import MODEL, vote


@KINDS.register("survival")
class Survival(Bootstrapped):
    """Labels are time and event (n, 2), the score a log hazard: higher dies sooner."""

    name = "survival"
    primary = Measure("c_index", "C-index", lambda *given: harrell(*given), chance=0.5)
    columns = (*PREDICTED, "time")
    better = "tells who has the event sooner better than chance would"
    worse = "puts patients in the wrong order, worse than chance would"
    counts = "events"
    watched = "C-index"
    how = "a bootstrap over patients within site and event, logit scale"

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """0 or 1, a positive time, a finite score."""
        time = pd.to_numeric(table["time"], errors="coerce")
        return {"label": table["label"].isin([0, 1]), "time": time > 0, "score": np.isfinite(table["score"])}

    def labels(self, table: pd.DataFrame) -> np.ndarray:
        """Time and event (n, 2)."""
        return table[["time", "label"]].to_numpy(dtype=float)

    def positives(self, table: pd.DataFrame) -> int | None:
        """Events."""
        return int(table["label"].sum())

    def undefined(self, table: pd.DataFrame) -> str:
        """Nobody had the event while somebody else was followed further."""
        time, event = self.labels(table).T
        if not event.any():
            return "no patient had the event"
        later = (time[:, None] < time) | ((time[:, None] == time) & (event < 1))
        return "" if later[event > 0].any() else "nobody was followed up after an event"

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """c over the pairs of the same group whose order is known."""
        right, known = np.zeros(len(weights)), np.zeros(len(weights))
        for group in np.unique(groups):
            own = groups == group
            value, pairs = harrell(labels[own], scores[own], weights[:, own]), known_pairs(labels[own], weights[:, own])
            right += np.nan_to_num(value) * pairs
            known += pairs
        with np.errstate(invalid="ignore"):
            return right / known


def harrell(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's c of a risk: of the pairs whose order is known, the share in which the higher score has the event sooner."""
    return c_index(labels[:, 0], labels[:, 1] > 0, -scores, weights)


def risk_groups(scope: Scope, predictions: pd.DataFrame, inner: pd.DataFrame) -> pd.DataFrame:
    """patient_id, site, time, event (bool) and higher (0/1) of the patients of `scope` whose models have a threshold.

    A model's threshold is the median of its scores on the inner folds of its own training patients; a patient is at higher
    risk when at least half of the models that did not see them say so.
    """
    halves = inner.groupby(MODEL)["score"].median().rename("threshold").reset_index()
    voted = vote(predictions, halves)
    place = (scope.trained_on, scope.split, scope.site)
    for one in scopes(voted.assign(score=voted["vote"])) if len(voted) else ():
        if (one.trained_on, one.split, one.site) == place:
            table = one.table.assign(event=one.table["label"] > 0, higher=(one.table["score"] >= 0.5).astype(int))
            return table[["patient_id", "site", "time", "event", "higher"]]
    return pd.DataFrame(columns=["patient_id", "site", "time", "event", "higher"])


def stratified_log_rank(table: pd.DataFrame) -> float:
    """p of equal survival of those at higher and at lower risk (`risk_groups`), stratified by site; nan where it has no variance."""
    parts = [
        LogRank.of(own["time"].to_numpy(float), own["event"].to_numpy(bool), own["higher"].to_numpy() > 0)
        for _, own in table.groupby("site")
    ]
    return float(stratified_logrank(parts)[1])


def known_pairs(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Number of the pairs whose order is known, in each resample."""
    time, event = labels[:, 0], labels[:, 1] > 0
    first = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    return ((weights @ first) * weights).sum(axis=1)
