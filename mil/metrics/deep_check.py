"""A results folder -> every leak check that its artefacts allow: what `mil check --deep` prints."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.config import EndpointSpec, ExperimentSpec
from mil.errors import MilError
from mil.figures.results import Absent
from mil.metrics.arms import check_predictions
from mil.metrics.baselines.inputs import bag_means
from mil.metrics.clinical import clinical_inputs
from mil.metrics.leaks import (
    Features,
    Finding,
    Trainer,
    administrative_inputs,
    check_bags,
    check_duplicate_slides,
    check_inputs,
    findings_table,
    probe_training,
)
from mil.progress import Reporter, quiet

if TYPE_CHECKING:
    from mil.figures.results import Results

PROBE_ROUNDS = 2
PROBE_TILES = 64  # tiles a bag that the probe trains on: it asks what is read, not how well it is learnt


def deep_check(results: "Results", reporter: Reporter | None = None) -> pd.DataFrame:
    """All findings over every endpoint and experiment of the run; see `mil.metrics.leaks` for what each means.

    Training itself is probed for the main experiment and the other strategies on its encoder and model.
    """
    found: list[Finding] = []
    for endpoint in results.endpoints:
        bags = results.bags(endpoint)
        labels = bags.set_index("patient_id")["label"]
        found += check_bags(bags)
        found += _inputs(results, endpoint, bags, labels)
    found += _slides(results)
    for name, experiment in results.experiments.items():
        found += _predictions(results, name)
        if name in results.family() and results.has_features(experiment.encoder):
            found += _probe(results, name, experiment, reporter or quiet())
    return findings_table(found)


def _slides(results: "Results") -> list[Finding]:
    try:
        return check_duplicate_slides(results.slides())
    except Absent:
        return []


def _inputs(results: "Results", endpoint: str, bags: pd.DataFrame, labels: pd.Series) -> list[Finding]:
    found = []
    try:
        slides = results.slides().merge(results.census()[["slide_id", "num_tiles"]], on="slide_id", how="left")
        used = slides[slides["slide_id"].isin(set(bags["slides"].astype(str).str.split(";").explode()))]
        found += check_inputs("bag size and files", administrative_inputs(used, bags), labels, innocent=True)
    except Absent:
        pass
    try:
        patients = results.patients()
        found += check_inputs("patient table", _columns(patients, results.config.endpoints[endpoint].column), labels)
    except Absent:
        pass
    for encoder in dict.fromkeys(one.encoder for one in results.experiments.values() if one.endpoint == endpoint):
        if results.has_features(encoder):
            found += check_inputs(f"features {encoder}", bag_means(results, endpoint, encoder), labels)
    return found


def _columns(patients: pd.DataFrame, label: str) -> pd.DataFrame:
    """Every column but ids and the label, as numbers; those with too many classes are left out."""
    parts = []
    for column in patients.columns:
        if column not in {"patient_id", label, "slide_id", "path"}:
            try:
                parts.append(clinical_inputs(patients, [column]))
            except MilError:
                continue
    return pd.concat(parts, axis=1) if parts else pd.DataFrame(index=patients["patient_id"])


def _predictions(results: "Results", name: str) -> list[Finding]:
    try:
        check_predictions(results.predictions(name), f"predictions of {name}")
    except Absent:
        return []
    except MilError as error:
        return [Finding("predictions", name, "leak", str(error))]
    return [Finding("predictions", name, "ok")]


def _probe(results: "Results", name: str, experiment: ExperimentSpec, reporter: Reporter) -> list[Finding]:
    bags = results.bags(experiment.endpoint)
    training = bags[bags["role"] == "train"]
    features = {
        row.patient_id: np.concatenate(
            [results.features(row.site, experiment.encoder, slide)[1] for slide in str(row.slides).split(";")]
        )[:PROBE_TILES].astype(np.float32)
        for row in training.itertuples()
    }
    reporter.note(f"probe of {name}: training twice for {PROBE_ROUNDS} rounds")
    found = probe_training(trainer_of(experiment, results.config.endpoints[experiment.endpoint]), training, features)
    return [Finding(one.check, f"{name}: {one.subject}", one.state, one.reason, one.value) for one in found]


def trainer_of(experiment: ExperimentSpec, endpoint: EndpointSpec) -> Trainer:
    """The project's own training as a `Trainer`, for a few rounds; the bags to score are those of an external site."""
    from mil.predictions import predict
    from mil.training.run import train  # torch, where it is needed
    from mil.training.store import FeatureStore

    few = experiment.model_copy(update={"training": experiment.training.model_copy(update={"rounds": PROBE_ROUNDS})})

    def scores(bags: pd.DataFrame, features: Features, further: Features) -> dict[tuple[str, int, int], np.ndarray]:
        run = train(few, endpoint, bags, FeatureStore.of(features), quiet())
        outside = pd.DataFrame({"patient_id": list(further), "site": "probe", "role": "external", "label": 0})
        outside[[name for name in bags.columns if name.startswith("repeat")]] = np.nan
        table = predict(run, outside, FeatureStore.of(further)).table
        return {
            (str(on), int(repeat), int(fold)): part.sort_values("patient_id")["score"].to_numpy()
            for (on, repeat, fold), part in table.groupby(["trained_on", "repeat", "fold"])
        }

    return scores
