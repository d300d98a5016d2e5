"""A results folder -> every leak check that its artefacts allow: what `mil check --deep` prints."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.config import EndpointSpec, ExperimentSpec
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.leaks.checks import Finding, findings_of, findings_table
from mil.leaks.inputs import PATIENT_TABLE, column_checks, input_checks
from mil.leaks.probe import Features, Trainer, probe_training
from mil.progress import Reporter, quiet
from mil.results.results import Absent

if TYPE_CHECKING:
    from mil.results.results import Results

PROBE_ROUNDS = 2
PROBE_TILES = 64  # tiles a bag that the probe trains on: it asks what is read, not how well it is learnt


def deep_check(results: "Results", reporter: Reporter | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """All findings over every endpoint and experiment of the run; see `mil.leaks.checks` for what each means.

    `known` are the tables of `input_checks`, made before training: without them these checks are done here, and with them
    only those of the patient table's columns. Training itself is probed for the main experiment and the other strategies on its
    encoder and model.
    """
    if known is None:
        findings = [finding for endpoint in results.endpoints for finding in input_checks(results, endpoint)]
    else:
        findings = [finding for finding in findings_of(known) if not finding.check.startswith(PATIENT_TABLE)]
        findings += [finding for endpoint in results.endpoints for finding in column_checks(results, endpoint)]
    for name, experiment in results.experiments.items():
        findings += _predictions(results, name)
        if name in results.family() and results.files.has_features(experiment.encoder):
            findings += _probe(results, name, experiment, reporter or quiet())
    return findings_table(findings)


def _predictions(results: "Results", name: str) -> list[Finding]:
    try:
        results.kind_of(name).checked(results.predictions(name), f"predictions of {name}")
    except Absent:
        return []
    except MilError as error:
        return [Finding("predictions", name, "leak", str(error))]
    return [Finding("predictions", name, "ok")]


def _probe(results: "Results", name: str, experiment: ExperimentSpec, reporter: Reporter) -> list[Finding]:
    bags = results.bags(experiment.endpoint)
    training = bags[bags["role"] == "train"]
    read = results.features_by_patient(training, experiment.encoder)
    features = {patient: bag[:PROBE_TILES].astype(np.float32) for patient, bag in read}
    reporter.note(f"probe of {name}: training two or three times for {PROBE_ROUNDS} rounds")
    findings = probe_training(trainer_of(experiment, results.config.endpoints[experiment.endpoint]), training, features)
    return [
        Finding(finding.check, f"{name}: {finding.subject}", finding.state, finding.reason, finding.value)
        for finding in findings
    ]


def trainer_of(experiment: ExperimentSpec, endpoint: EndpointSpec) -> Trainer:
    """The project's own training as a `Trainer`, for a few rounds; the bags to score are those of an external site."""
    from mil.predictions.predict import predict
    from mil.training.run import train  # torch, where it is needed
    from mil.training.store import FeatureStore

    relative = build_endpoint(endpoint).relative
    few = experiment.model_copy(update={"training": experiment.training.model_copy(update={"rounds": PROBE_ROUNDS})})

    def scores(bags: pd.DataFrame, features: Features, further: Features) -> dict[tuple[str, int, int], np.ndarray]:
        run = train(few, endpoint, bags, FeatureStore.of(features), quiet(), alike=True)
        free = run.experiment.model_copy(
            update={"protocol": "cross_validation"}
        )  # may judge the probes, wherever it trained
        outside = pd.DataFrame({"patient_id": list(further), "site": "probe", "role": "external", "label": 0})
        outside[[name for name in bags.columns if name.startswith("repeat") or name == "time"]] = np.nan
        outside[list(experiment.covariates)] = np.nan
        table = predict(replace(run, experiment=free), outside, FeatureStore.of(further)).table
        models = table.sort_values("patient_id").groupby(["trained_on", "repeat", "fold"])["score"]
        by_model = {(str(on), int(repeat), int(fold)): part.to_numpy() for (on, repeat, fold), part in models}
        return {key: part - part.mean() for key, part in by_model.items()} if relative else by_model

    return scores
