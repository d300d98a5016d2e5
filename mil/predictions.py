"""run + bags + features -> a probability a patient and model that may judge it, and attention a tile."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mil.endpoints import build_endpoint
from mil.errors import CorruptFile
from mil.models import build
from mil.training.engine import Engine, Learners
from mil.training.run import SCALE, Run
from mil.training.store import FeatureStore

COLUMNS = ["trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score"]


@dataclass(frozen=True)
class Predictions:
    """`table`: trained_on, repeat, fold, patient_id, site, role, split, label, score; `attention`: patient -> (tiles,)."""

    table: pd.DataFrame
    attention: dict[str, np.ndarray]
    """Mean over the models that may see the patient; sums to 1 over the bag, in the order of its slides."""


def predict(run: Run, bags: pd.DataFrame, features: FeatureStore) -> Predictions:
    """Each model on the patients it may judge.

    `held_out`: patients of a site it was trained on, in its own outer fold. `transfer`: patients of a training site that
    it never saw, in the same fold number. `external`: every patient of an external site, by every model.
    """
    _check_encoder(run, features)
    endpoint = build_endpoint(run.endpoint)
    head = build(run.experiment.model, features.width, endpoint.outputs)
    targets = np.zeros((len(features.patients), endpoint.outputs), np.float32)
    engine = Engine(head, endpoint, run.experiment.training, features, targets)
    learners = _learners(run, engine)
    index = features.index()
    bag = np.array([index[patient] for patient in bags.patient_id], np.int64)
    splits = [_splits(bags, model.trained_on.split("+"), model.repeat, model.fold) for model in run.models.itertuples()]
    found = engine.logits(learners, [bag[split != ""] for split in splits])
    tables = []
    for model, split, logits in zip(run.models.itertuples(), splits, found, strict=True):
        judged = bags.loc[split != "", ["patient_id", "site", "role", "label"]]
        origin = pd.DataFrame(
            {"trained_on": model.trained_on, "repeat": model.repeat, "fold": model.fold}, judged.index
        )
        outcome = {"split": split[split != ""], "score": endpoint.probability(logits)}
        tables.append(pd.concat([origin, judged], axis=1).assign(**outcome)[COLUMNS])
    seen = [bag[(split == "held_out") | (split == "external")] for split in splits]
    sums: dict[str, np.ndarray] = {}
    for own, many in zip(seen, engine.attention(learners, seen), strict=True):
        for number, attention in zip(own, many, strict=True):
            patient = features.patients[number]
            sums[patient] = sums.get(patient, 0.0) + attention.astype(np.float64)
    mean = {patient: (total / total.sum()).astype(np.float32) for patient, total in sums.items()}
    return Predictions(pd.concat(tables, ignore_index=True), mean)


def _splits(bags: pd.DataFrame, trained_on: list[str], repeat: int, fold: int) -> np.ndarray:
    """What each row of `bags` is to a model; '' where it may not judge it."""
    in_fold = (pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce") == fold).to_numpy()
    external = (bags.role == "external").to_numpy()
    own = bags.site.isin(trained_on).to_numpy()
    return np.where(external, "external", np.where(in_fold, np.where(own, "held_out", "transfer"), ""))


def _check_encoder(run: Run, features: FeatureStore) -> None:
    for key, trained in run.about.items():
        if features.about.get(key) != trained:
            raise CorruptFile(
                f"features: {key} is {features.about.get(key)!r}, but the run was trained on {trained!r}; extract them with the same spec"
            )


def _learners(run: Run, engine: Engine) -> Learners:

    rows = torch.cat([run.weights[name].reshape(len(run.models), -1) for name in engine.layout.shapes], dim=1)
    mean, deviation = (run.weights[name] for name in SCALE)
    none = torch.zeros(len(rows), 1)
    return Learners(rows, mean, deviation, none, none)
