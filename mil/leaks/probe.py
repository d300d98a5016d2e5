"""A trainer -> findings: whether what it trains depends on patients that its models are to judge."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.bags.table import outer_folds
from mil.leaks.checks import Finding
from mil.rng import rng

Features = Mapping[str, np.ndarray]
Key = tuple[str, int, int]
# of every model, by (trained_on, repeat, fold), its scores on a fixed set of bags
Scores = Mapping[Key, np.ndarray]
# (bags and features to train on, further bags to score) -> the trained models' scores on the latter
Trainer = Callable[[pd.DataFrame, Features, Features], Scores]

PROBES = 12  # bags that models are compared on
SAME = 1e-3  # scores that differ by less are the same model up to rounding: models that train together share batches


@dataclass(frozen=True)
class Spoiled:
    """Patients whose features and labels are spoiled, and the models that must not notice."""

    subject: str
    patients: np.ndarray
    """(training patients,) bool"""
    models: tuple[Key, ...]


def probe_training(train: Trainer, bags: pd.DataFrame, features: Features, folds: int = 1) -> list[Finding]:
    """Train again with noise for the features of some patients and with their labels turned round, and compare the models.

    The patients are those of an outer fold (`folds` of the first repeat are probed), whose models judge them, and, where
    some models leave a training site out, all patients of that site. The models must come out the same, seen by their
    scores on copies of other bags: whatever differs was read. `features` are tiles (n, width) by patient. Catches a test
    fold or another hospital that early stopping, scaling or selection looks at.
    """
    training = bags[bags["role"] == "train"].reset_index(drop=True)
    clean = {patient: features[patient] for patient in training["patient_id"]}
    copies = {f"probe{n}": tiles for n, tiles in enumerate(list(clean.values())[:PROBES])}
    before = train(training, clean, copies)
    outcome = (
        "time" if "time" in training else "label"
    )  # events turned round may leave nobody who was followed up after one
    findings = []
    for spoiled in _to_spoil(training, before, folds):
        turned = np.where(spoiled.patients, _turned(training[outcome]), training[outcome])
        stream = rng(0, "probe", spoiled.subject)
        noise = {
            patient: stream.normal(size=clean[patient].shape).astype(clean[patient].dtype) * 10
            for patient in training.loc[spoiled.patients, "patient_id"]
        }
        after = train(training.assign(**{outcome: turned}), {**clean, **noise}, copies)
        findings.append(_compared(spoiled, before, after))
    return findings


def _turned(values: pd.Series) -> pd.Series:
    """Other outcomes of those that there are, each by one half of them further: yes for no, another class, another number."""
    known = sorted(values.unique())
    half = len(known) // 2
    return values.map(dict(zip(known, known[half:] + known[:half], strict=True)))


def _to_spoil(training: pd.DataFrame, models: Scores, folds: int) -> Iterator[Spoiled]:
    """Outer folds of the first repeat, then the first site that some model was not trained on."""
    for repeat, fold in list(outer_folds(training))[:folds]:
        judged = (pd.to_numeric(training[f"repeat{repeat}"], errors="coerce") == fold).to_numpy()
        yield Spoiled(
            f"repeat {repeat}, fold {fold}", judged, tuple(key for key in models if key[1:] == (repeat, fold))
        )
    for site in sorted(training["site"].unique()):
        strangers = tuple(key for key in models if site not in key[0].split("+"))
        if strangers:
            yield Spoiled(f"site {site} left out", (training["site"] == site).to_numpy(), strangers)
            return


def _compared(spoiled: Spoiled, before: Scores, after: Scores) -> Finding:
    """Whether any of the models that were not to notice has changed."""
    moved = {key: float(np.abs(before[key] - after[key]).max()) if key in after else np.inf for key in spoiled.models}
    if not moved:
        reason = "no model of this fold came back, so nothing was tested"
        return Finding("training", spoiled.subject, "suspect", reason)
    key = max(moved, key=lambda model: moved[model])
    if moved[key] > SAME:
        reason = (
            f"the model of {key[0]} changes with the patients that it is to judge: training or selection reads them"
        )
        return Finding("training", spoiled.subject, "leak", reason, moved[key])
    return Finding(
        "training", f"{spoiled.subject}, {len(moved)} model{'s' if len(moved) > 1 else ''}", "ok", value=moved[key]
    )
