"""A small cohort in memory for the tests of training, federation and predictions."""

import numpy as np
import pandas as pd

from mil.config import EndpointSpec, ExperimentSpec
from mil.training.store import FeatureStore

ENDPOINT = EndpointSpec(folds=3, inner_folds=2)
SITES = {"A": "train", "B": "train", "C": "external"}


def make_cohort(patients_a_site=12, width=8, seed=0, sites=SITES, endpoint=ENDPOINT):
    """Bag table and arrays by patient; in positive bags a third of the tiles is shifted along the first axis."""
    generator = np.random.default_rng(seed)
    rows, bags = [], {}
    for site, role in sites.items():
        for number in range(patients_a_site):
            patient, label = f"{site}{number:02d}", number % 2
            tiles = generator.normal(size=(int(generator.integers(3, 20)), width)).astype(np.float32)
            tiles[: max(1, len(tiles) // 3), 0] += 3 * label
            bags[patient] = tiles
            row = {"patient_id": patient, "slides": patient, "site": site, "role": role, "label": label}
            fold = (number // 2) % endpoint.folds
            for f in range(endpoint.folds) if role == "train" else ():
                other = (number // (2 * endpoint.folds) + (fold == (f + 1) % endpoint.folds)) % endpoint.inner_folds
                row[f"repeat0_fold{f}_inner"] = "" if f == fold else other
            rows.append(row | {"repeat0": fold if role == "train" else ""})
    return pd.DataFrame(rows), bags


GRADIENTS = {"optimiser": "sgd", "local_steps": 1, "batch_size": 64}
"""What strategy fedsgd needs."""


def experiment(**changes):
    """A stanza with small widths; `training` is merged key by key."""
    base = {
        "encoder": "e",
        "endpoint": "response",
        "model": {"name": "gated_attention", "hidden": 8, "attention": 4},
        "strategy": "pooled",
    }
    training = {"rounds": 6, "local_epochs": 4, "batch_size": 4, "lr": 0.02} | changes.pop("training", {})
    training |= GRADIENTS if changes.get("strategy") in ("fedsgd", {"name": "fedsgd"}) else {}
    return ExperimentSpec.model_validate(base | changes | {"training": training})


def training_part(bags, arrays):
    """Rows and features of the training sites."""
    rows = bags[bags["role"] == "train"]
    return rows, FeatureStore.of({patient: arrays[patient] for patient in rows["patient_id"]}, {"encoder": "e"})
