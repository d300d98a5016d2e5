"""Numbers by patient -> predictions of linear models over the bag table's folds, in the tables that experiments write.

A baseline is an experiment of the model `clinical`: the same training, selection on inner folds and prediction as every other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec
from mil.endpoints import build_endpoint
from mil.errors import NoInnerFold
from mil.progress import Reporter, quiet
from mil.rng import rng
from mil.schemas import INNER, PREDICTIONS
from mil.specs.endpoints import EndpointSpec
from mil.tables import stacked

LEAVE_ONE_SITE_OUT = "loso"
STRATEGIES = {"local": "local", "pooled": "pooled", "federated": "fedavg", LEAVE_ONE_SITE_OUT: "pooled"}
"""Names of a baseline's strategies, and the strategies of experiments that they are."""
SETTINGS = {
    "training": {"rounds": 25, "lr": 0.05, "weight_decay": 0.01},
    "search": {"weight_decay": (0.01, 1.0)},
}
"""How a baseline is trained; the number of rounds and the weight decay are chosen on the inner folds."""
PREDICTED = ["experiment", *PREDICTIONS]
WATCHED = ["experiment", *INNER]


@dataclass(frozen=True)
class Folded:
    """Predictions of outer folds and of inner folds (which thresholds are chosen on)."""

    predictions: pd.DataFrame
    inner: pd.DataFrame


def run_protocol(
    name: str, inputs: pd.DataFrame, bags: pd.DataFrame, endpoint: EndpointSpec, strategies: Sequence[str] = ()
) -> Folded:
    """Linear models of `inputs` (patient_id -> numbers, nan where unknown) over the folds of `bags`.

    Experiments are named `{name}_{strategy}`; `strategies` are keys of `STRATEGIES`, none of them given: all. `loso` needs three
    training sites; each model predicts the site left out and nothing else (split `transfer`). A patient without any input
    is scored at the mean of the inputs. `local` is left out where a site has too few patients for models of its own.
    """
    names = [f"input {number}" for number in range(len(inputs.columns))]
    values = inputs.reindex(bags["patient_id"]).to_numpy(dtype=float)
    values = (
        values - inputs.median().fillna(0).to_numpy()
    )  # models see single precision: seconds since 1970 would be rounded
    table = pd.concat([bags.reset_index(drop=True), pd.DataFrame(values, columns=names)], axis=1)
    several = bags.loc[bags["role"] == "train", "site"].nunique() > 2
    parts = []
    for strategy in strategies or STRATEGIES:
        left_out = strategy == LEAVE_ONE_SITE_OUT
        if several or not left_out:
            protocol = "leave_one_site_out" if left_out else "cross_validation"
            stated = {"encoder": "", "endpoint": "", "model": "clinical", "strategy": STRATEGIES[strategy]}
            settings = {**stated, "protocol": protocol, "covariates": names, **SETTINGS}
            experiment = ExperimentSpec.model_validate(settings)
            try:
                parts.append(train_without_tiles(f"{name}_{strategy}", experiment, endpoint, table, alike=True))
            except NoInnerFold:
                if strategy != "local":
                    raise
    return join_folded(parts)


def train_without_tiles(
    name: str,
    experiment: ExperimentSpec,
    endpoint: EndpointSpec,
    bags: pd.DataFrame,
    reporter: Reporter | None = None,
    alike: bool = False,
) -> Folded:
    """Train an experiment of the model `clinical` on covariates in `bags` and predict; no feature file is read.

    `alike`: also where all training patients of a model, as of a small site, have the same label.
    """
    from mil.predictions.predict import predict  # torch, where it is needed
    from mil.training.run import train
    from mil.training.store import FeatureStore

    blank = {patient: np.zeros((1, 1), np.float32) for patient in bags["patient_id"]}
    training = bags[bags["role"] == "train"]
    store = FeatureStore.of({patient: blank[patient] for patient in training["patient_id"]})
    run = train(experiment, endpoint, training, store, reporter or quiet(), alike=alike)
    table = predict(run, bags, FeatureStore.of(blank)).table.assign(experiment=name)
    inner = pd.DataFrame(columns=WATCHED) if run.inner is None else run.inner.assign(experiment=name)
    return Folded(table[list(build_endpoint(endpoint).predicted)], inner[WATCHED])


def join_folded(parts: Sequence[Folded]) -> Folded:
    """The predictions of all parts."""
    none = Folded(pd.DataFrame(columns=PREDICTED), pd.DataFrame(columns=WATCHED))
    both = [none, *parts]
    return Folded(stacked([part.predictions for part in both]), stacked([part.inner for part in both]))


def permuted_labels(bags: pd.DataFrame, seed: int, number: int) -> pd.DataFrame:
    """The bag table with labels permuted within each site."""
    shuffled = bags.copy()
    for site, part in bags.groupby("site"):
        order = rng(seed, "permuted", number, site).permutation(len(part))
        shuffled.loc[part.index, "label"] = part["label"].to_numpy()[order]
    return shuffled
