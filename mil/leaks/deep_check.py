"""A results folder -> every leak check that its artefacts allow: what `mil check --deep` prints."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.bags.covariates import clinical_inputs
from mil.baselines.inputs import bag_means
from mil.config import EndpointSpec, ExperimentSpec
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.leaks.checks import (
    MADE_FROM_LABEL,
    Finding,
    administrative_inputs,
    check_bags,
    check_copies,
    check_duplicate_slides,
    check_inputs,
    findings_table,
    text_inputs,
)
from mil.leaks.probe import Features, Trainer, probe_training
from mil.progress import Reporter, quiet
from mil.results.results import Absent

if TYPE_CHECKING:
    from mil.results.results import Results

PROBE_ROUNDS = 2
PROBE_TILES = 64  # tiles a bag that the probe trains on: it asks what is read, not how well it is learnt

BAG_SIZE = ("num_tiles", "slides")
"""Of what is known of slides and files, what a model can read."""


def deep_check(results: "Results", reporter: Reporter | None = None) -> pd.DataFrame:
    """All findings over every endpoint and experiment of the run; see `mil.leaks.checks` for what each means.

    Training itself is probed for the main experiment and the other strategies on its encoder and model.
    """
    found: list[Finding] = []
    for endpoint in results.endpoints:
        bags = results.bags(endpoint)
        found += check_bags(bags, _census(results))
        if build_endpoint(results.endpoints[endpoint]).two_classes:
            found += _inputs(results, endpoint, bags.drop_duplicates("patient_id"))
        found += _copies(results, endpoint, bags.drop_duplicates("patient_id"))
    found += _slides(results)
    for name, experiment in results.experiments.items():
        found += _predictions(results, name)
        if name in results.family() and results.files.has_features(experiment.encoder):
            found += _probe(results, name, experiment, reporter or quiet())
    return findings_table(found)


def _slides(results: "Results") -> list[Finding]:
    try:
        return check_duplicate_slides(results.slides())
    except Absent:
        return []


def _census(results: "Results") -> pd.DataFrame | None:
    try:
        return results.census()
    except Absent:
        return None


def _inputs(results: "Results", endpoint: str, bags: pd.DataFrame) -> list[Finding]:
    """Whatever is known of patients besides their label, against the label."""
    found = []
    by_patient = bags.set_index("patient_id")
    known = by_patient["label"], by_patient["site"]
    with suppress(Absent):
        slides = results.slides().merge(results.census()[["slide_id", "num_tiles"]], on="slide_id", how="left")
        used = slides[slides["slide_id"].isin(set(bags["slides"].astype(str).str.split(";").explode()))]
        files = check_inputs("bag size and files", administrative_inputs(used, bags), *known, innocent=True)
        names = (used["slide_id"] + " " + used["path"].astype(str)).groupby(used["patient_id"]).agg(" ".join)
        words = text_inputs({patient: f"{patient} {text}" for patient, text in names.items()})
        named = check_inputs("names of patients, slides and files", words, *known, innocent=True)
        unread = [one for one in [*files, *named] if one.subject not in BAG_SIZE]
        found += _suspected(unread, "no model reads it, but find out how positives and negatives were collected")
        found += _explained([one for one in files if one.subject in BAG_SIZE], "the number of tiles may be the label's")
    with suppress(Absent):
        found += _patient_table(results, endpoint, *known)
    for encoder in _encoders(results, endpoint):
        values = check_inputs(f"features {encoder}", bag_means(results, endpoint, encoder), *known)
        found += _explained(
            values, "it holds the label, or scanner, stain or encoder do, or the label is that easy to see"
        )
    return found


def _patient_table(results: "Results", endpoint: str, labels: pd.Series, sites: pd.Series) -> list[Finding]:
    """Columns that this run reads, and those that it does not: there, what was made from the label does no harm yet."""
    patients, metrics = results.patients(), results.config.metrics
    read = {*metrics.clinical, *filter(None, [metrics.annotation])}
    read |= {name for one in results.experiments.values() for name in one.covariates}
    label = results.config.endpoints[endpoint].column
    columns = [name for name in patients.columns if name not in {"patient_id", label, "slide_id", "path"}]
    used = [name for name in columns if name in read]
    rest = [name for name in columns if name not in read]
    found = check_inputs("patient table", _numbers(patients, used), labels, sites)
    unread = check_inputs("patient table, not used", _numbers(patients, rest), labels, sites)
    way_out = "it was likely made from the label; this run does not read it, keep it so"
    return found + _suspected(unread, way_out)


def _suspected(found: Sequence[Finding], instead: str) -> list[Finding]:
    """Findings of what is no fault of the run: worth a look, and said what else it can be; they end nothing."""
    return [replace(one, state="suspect") if one.state == "leak" else one for one in _explained(found, instead)]


def _explained(found: Sequence[Finding], instead: str) -> list[Finding]:
    """What else than a column made from the label a finding can be."""
    return [replace(one, reason=one.reason.replace(MADE_FROM_LABEL, instead)) for one in found]


def _copies(results: "Results", endpoint: str, bags: pd.DataFrame) -> list[Finding]:
    return [
        one
        for encoder in _encoders(results, endpoint)
        for one in check_copies(f"copies, features {encoder}", _tiles(results, bags, encoder))
    ]


def _encoders(results: "Results", endpoint: str) -> list[str]:
    """Encoders of the endpoint's experiments whose features are here."""
    names = dict.fromkeys(one.encoder for one in results.experiments.values() if one.endpoint == endpoint)
    return [name for name in names if results.files.has_features(name)]


def _tiles(results: "Results", bags: pd.DataFrame, encoder: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each patient with their features (tiles, width)."""
    for row in bags.itertuples():
        slides = str(row.slides).split(";")
        yield (
            str(row.patient_id),
            np.concatenate([results.files.features(str(row.site), encoder, slide)[1] for slide in slides]),
        )


def _numbers(patients: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Columns as numbers by patient_id; of free text (too many classes) its words."""
    parts = [pd.DataFrame(index=pd.Index(patients["patient_id"]))]
    for column in columns:
        try:
            parts.append(clinical_inputs(patients, [column]))
        except MilError:
            texts = patients.set_index("patient_id")[column].astype(str).to_dict()
            parts.append(text_inputs({str(patient): text for patient, text in texts.items()}).add_prefix(f"{column} "))
    return pd.concat(parts, axis=1)


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
    tiles = _tiles(results, training, experiment.encoder)
    features = {patient: bag[:PROBE_TILES].astype(np.float32) for patient, bag in tiles}
    reporter.note(f"probe of {name}: training two or three times for {PROBE_ROUNDS} rounds")
    found = probe_training(trainer_of(experiment, results.config.endpoints[experiment.endpoint]), training, features)
    return [Finding(one.check, f"{name}: {one.subject}", one.state, one.reason, one.value) for one in found]


def trainer_of(experiment: ExperimentSpec, endpoint: EndpointSpec) -> Trainer:
    """The project's own training as a `Trainer`, for a few rounds; the bags to score are those of an external site."""
    from mil.predictions.predict import predict
    from mil.training.run import train  # torch, where it is needed
    from mil.training.store import FeatureStore

    few = experiment.model_copy(update={"training": experiment.training.model_copy(update={"rounds": PROBE_ROUNDS})})

    def scores(bags: pd.DataFrame, features: Features, further: Features) -> dict[tuple[str, int, int], np.ndarray]:
        run = train(few, endpoint, bags, FeatureStore.of(features), quiet())
        free = run.experiment.model_copy(
            update={"protocol": "cross_validation"}
        )  # may judge the probes, wherever it trained
        outside = pd.DataFrame({"patient_id": list(further), "site": "probe", "role": "external", "label": 0})
        outside[[name for name in bags.columns if name.startswith("repeat") or name == "time"]] = np.nan
        outside[list(experiment.covariates)] = np.nan
        table = predict(replace(run, experiment=free), outside, FeatureStore.of(further)).table
        return {
            (str(on), int(repeat), int(fold)): part.sort_values("patient_id")["score"].to_numpy()
            for (on, repeat, fold), part in table.groupby(["trained_on", "repeat", "fold"])
        }

    return scores
