"""A results folder -> the inputs of every baseline by patient, and the baselines' predictions."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import expit

from mil.bags.covariates import clinical_inputs
from mil.baselines.protocol import PREDICTED, Folded, join_folded, permuted_labels, run_protocol
from mil.config import EndpointSpec, ExperimentSpec
from mil.registry import Registry
from mil.schemas import PREDICTIONS
from mil.statistics.arms import ENSEMBLE, OWN_SITE
from mil.statistics.calibration import logit
from mil.tables import slides_of, stacked

if TYPE_CHECKING:
    from mil.results.results import Results

# (results, endpoint) -> numbers by patient_id, or none where the cohort lacks them
Inputs = Callable[["Results", str], pd.DataFrame | None]
BASELINES: Registry[Inputs] = Registry("baseline")
# what a hospital could use as a model comes in every strategy; the others are controls, and stand pooled
MODELS = ("clinical", "annotation", "mean_features")
NAMES = {
    "clinical": "Clinical",
    "annotation": "Annotation",
    "colour": "Colour",
    "bag_size": "Bag size",
    "site": "Site",
    "permuted": "Permuted labels (one permutation)",
    "fusion": "Clinical + slide",
    "mean_features": "Linear model of mean features",
}


@BASELINES.register("clinical")
def clinical(results: "Results", endpoint: str) -> pd.DataFrame | None:
    """The columns of `metrics.clinical`."""
    columns = results.config.metrics.clinical
    return clinical_inputs(results.patients(), columns) if columns else None


@BASELINES.register("annotation")
def annotation(results: "Results", endpoint: str) -> pd.DataFrame | None:
    """The expert's annotation alone."""
    column = results.config.metrics.annotation
    return clinical_inputs(results.patients(), [column]) if column else None


@BASELINES.register("colour")
def colour(results: "Results", endpoint: str) -> pd.DataFrame | None:
    """Mean over the bag of each tile's mean and deviation of RGB, where an experiment has an encoder `colour`; others' features may be old."""
    current = {experiment.encoder for experiment in results.experiments.values()}
    names = [name for name, spec in results.config.encoders.items() if spec.name == "colour" and name in current]
    used = [name for name in names if results.files.has_features(name)]
    return bag_means(results, endpoint, used[0]) if used else None


@BASELINES.register("bag_size")
def bag_size(results: "Results", endpoint: str) -> pd.DataFrame:
    """Logarithm of the number of tiles, and the number of slides."""
    bags, census = results.bags(endpoint), results.census().set_index("slide_id")["num_tiles"]
    slides = bags["slides"].map(slides_of)
    tiles = slides.map(lambda names: float(census.reindex(names).fillna(0).sum()))
    table = pd.DataFrame({"log tiles": np.log1p(tiles), "slides": slides.map(len).astype(float)})
    return table.set_index(bags["patient_id"].to_numpy())


@BASELINES.register("site")
def site(results: "Results", endpoint: str) -> pd.DataFrame:
    """Which hospital the patient is from, and nothing else."""
    bags = results.bags(endpoint)
    return pd.get_dummies(bags.set_index("patient_id")["site"], dtype=float)


@BASELINES.register("mean_features")
def mean_features(results: "Results", endpoint: str) -> pd.DataFrame | None:
    """Mean over the bag of the main experiment's features."""
    encoder = results.experiments[results.main].encoder
    return bag_means(results, endpoint, encoder) if results.files.has_features(encoder) else None


def bag_means(results: "Results", endpoint: str, encoder: str) -> pd.DataFrame:
    """Mean feature vector of every patient's tiles."""
    read = results.features_by_patient(results.bags(endpoint), encoder)
    means = {patient: features.mean(axis=0, dtype=np.float64) for patient, features in read}
    return pd.DataFrame.from_dict(means, orient="index")


def run_baselines(results: "Results", endpoint: str) -> Folded:
    """Every baseline that this cohort has inputs for, its late fusion with the main experiment, and permuted labels."""
    bags, spec = results.bags(endpoint), results.endpoints[endpoint]
    parts = []
    for name in BASELINES:
        inputs = BASELINES[name](results, endpoint)
        if inputs is not None and len(inputs.columns):
            parts.append(run_protocol(name, inputs, bags, spec, () if name in MODELS else ("pooled",)))
            if name == "mean_features":
                parts.append(permuted(inputs, bags, spec, results.config.metrics.seed))
    folded = join_folded(parts)
    if results.config.metrics.clinical and endpoint == results.endpoint:
        fused = late_fusion(results, folded.predictions)
        return Folded(stacked([folded.predictions, fused]), folded.inner)
    return folded


def permuted(inputs: pd.DataFrame, bags: pd.DataFrame, endpoint: EndpointSpec, seed: int, number: int = 0) -> Folded:
    """The same protocol with labels permuted within each site, which nothing can predict."""
    shuffled = permuted_labels(bags, seed, number)
    return run_protocol("permuted", inputs, shuffled, endpoint, ("pooled",))


def late_fusion(results: "Results", baselines: pd.DataFrame) -> pd.DataFrame:
    """Mean of the logits of clinical and slide model, strategy by strategy; nothing is fitted, so nothing can leak."""
    parts = []
    for name, experiment in fused(results).items():
        kind = "federated" if experiment.strategy.of_rounds.federated else experiment.strategy.name
        kind = "loso" if experiment.protocol == "leave_one_site_out" else kind
        clinical_part = baselines[baselines["experiment"] == f"clinical_{kind}"]
        keys = [column for column in PREDICTIONS if column not in {"experiment", "score"}]
        slide = results.predictions(name)
        slide = slide[~slide["trained_on"].isin([OWN_SITE, ENSEMBLE])]
        both = slide.merge(clinical_part, on=keys, suffixes=("_slide", "_clinical"))
        scores = both[["score_slide", "score_clinical"]].to_numpy(dtype=float)
        logits = logit(scores).mean(axis=1)
        parts.append(both.assign(experiment=f"fusion_{experiment.strategy.name}", score=expit(logits))[PREDICTED])
    return stacked([pd.DataFrame(columns=PREDICTED), *parts])


def fused(results: "Results") -> dict[str, ExperimentSpec]:
    """The experiments that are fused: of the main one's family one a strategy, the main one itself or the first under `run`."""
    family, chosen = results.family(), {}
    for name in (results.main, *family):
        chosen.setdefault(family[name].strategy.name, name)
    return {name: experiment for name, experiment in family.items() if name in chosen.values()}
