"""Inputs a patient + the bag table's own folds -> predictions of logistic regressions, in the table that models write.

For every repeat and outer fold the ridge is chosen on the inner folds (smallest log loss), then the model is fitted on all
outer-training patients; no outer-fold or external patient is read before they are predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.baselines.logistic import Logistic, fit_federated, fit_together, log_loss
from mil.rng import rng
from mil.schemas import INNER, PREDICTIONS

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
LEAVE_ONE_SITE_OUT = "loso"
STRATEGIES = ("local", "pooled", "federated", LEAVE_ONE_SITE_OUT)
PREDICTED = ["experiment", *PREDICTIONS]
WATCHED = ["experiment", *INNER]


@dataclass(frozen=True)
class Folded:
    """Predictions of outer folds and of inner folds (which thresholds are chosen on)."""

    predictions: pd.DataFrame
    inner: pd.DataFrame


def run_protocol(name: str, inputs: pd.DataFrame, bags: pd.DataFrame, strategies: Sequence[str] = STRATEGIES) -> Folded:
    """Logistic regressions on `inputs` (patient_id -> numbers, nan where unknown) over the folds of `bags`.

    Experiments are named `{name}_{strategy}`: `local` one model a training site, `pooled` one on all in one table,
    `federated` the same from sums, `loso` one on all training sites but one, for each (of three or more), which predicts the
    site left out and nothing else (split `transfer`). Patients without any input are scored at the mean of the inputs.
    """
    bags = bags.reset_index(drop=True)
    values = inputs.reindex(bags["patient_id"]).to_numpy(dtype=float)
    training = sorted(bags.loc[bags["role"] == "train", "site"].unique())
    rows, inner = [], []
    for strategy in strategies:
        for sites in _groups(training, strategy):
            for repeat, fold in outer_folds(bags):
                origin = {
                    "experiment": f"{name}_{strategy}",
                    "trained_on": "+".join(sites),
                    "repeat": repeat,
                    "fold": fold,
                }
                found = _one_fold(bags, values, sites, repeat, fold, strategy)
                if found is None:
                    continue
                judged = found[0][found[0]["split"] == "transfer"] if strategy == LEAVE_ONE_SITE_OUT else found[0]
                rows.append(judged.assign(**origin))
                if len(found[1]):  # none where the inner folds hold one class only
                    inner.append(found[1].assign(**origin))
    predictions = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=PREDICTED)
    watched = pd.concat(inner, ignore_index=True) if inner else pd.DataFrame(columns=WATCHED)
    return Folded(predictions[PREDICTED], watched[WATCHED])


def _groups(training: Sequence[str], strategy: str) -> list[tuple[str, ...]]:
    """The sets of sites that a strategy trains models on."""
    if strategy == "local":
        return [(site,) for site in training]
    if strategy == LEAVE_ONE_SITE_OUT:
        return [tuple(other for other in training if other != site) for site in training] if len(training) > 2 else []
    return [tuple(training)]


def outer_folds(bags: pd.DataFrame) -> Iterator[tuple[int, int]]:
    """(repeat, fold) of the bag table's columns."""
    repeats = sorted(int(name[6:]) for name in bags.columns if name.startswith("repeat") and name[6:].isdigit())
    for repeat in repeats:
        for fold in sorted(pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce").dropna().unique()):
            yield repeat, int(fold)


def _one_fold(
    bags: pd.DataFrame, values: np.ndarray, sites: tuple[str, ...], repeat: int, fold: int, strategy: str
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Predictions of one model and of the inner folds it was chosen on; none where its training patients are of one class."""
    outer = pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce").to_numpy()
    train = bags["site"].isin(sites).to_numpy() & (bags["role"] == "train").to_numpy() & (outer != fold)
    watched = pd.to_numeric(bags[f"repeat{repeat}_fold{fold}_inner"], errors="coerce").to_numpy()
    labels = bags["label"].to_numpy(dtype=int)
    if len(np.unique(labels[train])) < 2:
        return None
    strength, inner = _choose(bags, values, labels, train, watched, strategy)
    model = _fit(bags, values, labels, train, strategy, strength)
    split = np.where(bags["role"] == "external", "external", np.where(bags["site"].isin(sites), "held_out", "transfer"))
    judged = (outer == fold) | (bags["role"] == "external").to_numpy()
    table = bags.loc[judged, ["patient_id", "site", "role", "label"]]
    return table.assign(split=split[judged], score=model.chance(values[judged])), inner


def _choose(
    bags: pd.DataFrame, values: np.ndarray, labels: np.ndarray, train: np.ndarray, watched: np.ndarray, strategy: str
) -> tuple[float, pd.DataFrame]:
    """The strength with the smallest loss on held-out inner folds, and those inner predictions at it."""
    found: dict[float, list[pd.DataFrame]] = {strength: [] for strength in STRENGTHS}
    for number in np.unique(watched[train & np.isfinite(watched)]):
        taught, held = train & (watched != number), train & (watched == number)
        if len(np.unique(labels[taught])) < 2:
            continue
        for strength in STRENGTHS:
            chance = _fit(bags, values, labels, taught, strategy, strength).chance(values[held])
            table = bags.loc[held, ["patient_id", "site", "label"]].assign(inner=int(number), score=chance)
            found[strength].append(table)
    if not found[STRENGTHS[0]]:
        return 1.0, pd.DataFrame(columns=["patient_id", "site", "label", "inner", "score"])
    tables = {strength: pd.concat(parts) for strength, parts in found.items()}
    losses = {s: log_loss(t["label"].to_numpy(), t["score"].to_numpy()) for s, t in tables.items()}
    best = min(STRENGTHS, key=lambda strength: (losses[strength], strength))
    return best, tables[best]


def _fit(
    bags: pd.DataFrame, values: np.ndarray, labels: np.ndarray, chosen: np.ndarray, strategy: str, strength: float
) -> Logistic:
    sites = [chosen & (bags["site"] == site).to_numpy() for site in sorted(bags.loc[chosen, "site"].unique())]
    fit = fit_federated if strategy == "federated" else fit_together
    return fit([values[site] for site in sites], [labels[site] for site in sites], strength)


def permuted_labels(bags: pd.DataFrame, seed: int, number: int) -> pd.DataFrame:
    """The bag table with labels permuted within each site."""
    shuffled = bags.copy()
    for site, part in bags.groupby("site"):
        order = rng(seed, "permuted", number, site).permutation(len(part))
        shuffled.loc[part.index, "label"] = part["label"].to_numpy()[order]
    return shuffled
