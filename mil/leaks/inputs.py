"""A results folder -> what can be known of leaks before training, from bags, labels, columns and features: `mil check --inputs`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from mil.bags.covariates import clinical_inputs
from mil.baselines.inputs import bag_means
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.leaks.checks import (
    MADE_FROM_LABEL,
    NOT_JUDGED,
    Finding,
    administrative_inputs,
    check_bags,
    check_copies,
    check_duplicate_slides,
    check_inputs,
    text_inputs,
)
from mil.results.results import Absent
from mil.tables import by_slide

if TYPE_CHECKING:
    from mil.results.results import Results

BAG_SIZE = ("num_tiles", "slides")
"""Of what is known of slides and files, what a model can read."""


PATIENT_TABLE = "patient table"
"""Of checks of its columns."""


def input_checks(results: "Results", endpoint: str) -> list[Finding]:
    """All findings on what training for an endpoint will read; no trained model is needed."""
    bags = results.bags(endpoint)
    patients = bags.drop_duplicates("patient_id")
    findings = [*check_bags(bags, _census(results)), *_slides(results)]
    if build_endpoint(results.endpoints[endpoint]).two_classes:
        findings += _inputs(results, endpoint, patients)
    else:
        reason = f"is of kind {results.endpoints[endpoint].kind}; inputs are judged against labels of two classes only"
        findings.append(Finding("inputs", f"endpoint {endpoint}", NOT_JUDGED, reason))
    return [*findings, *column_checks(results, endpoint), *_copies(results, endpoint, patients)]


def column_checks(results: "Results", endpoint: str) -> list[Finding]:
    """Those on the columns of the patient table alone: they and the settings that name them may change after training."""
    if not build_endpoint(results.endpoints[endpoint]).two_classes:
        return []
    by_patient = results.bags(endpoint).drop_duplicates("patient_id").set_index("patient_id")
    try:
        return _patient_table(results, endpoint, by_patient["label"], by_patient["site"])
    except Absent:
        return []


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
    findings = []
    by_patient = bags.set_index("patient_id")
    known = by_patient["label"], by_patient["site"]
    with suppress(Absent):
        slides = results.slides().merge(results.census()[["slide_id", "num_tiles"]], on="slide_id", how="left")
        used = slides[slides["slide_id"].isin(by_slide(bags)["slide_id"])]
        files = check_inputs("bag size and files", administrative_inputs(used, bags), *known, innocent=True)
        names = (used["slide_id"] + " " + used["path"].astype(str)).groupby(used["patient_id"]).agg(" ".join)
        words = text_inputs({patient: f"{patient} {text}" for patient, text in names.items()})
        named = check_inputs("names of patients, slides and files", words, *known, innocent=True)
        unread = [finding for finding in [*files, *named] if finding.subject not in BAG_SIZE]
        findings += _suspected(unread, "no model reads it, but find out how positives and negatives were collected")
        findings += _explained(
            [finding for finding in files if finding.subject in BAG_SIZE], "the number of tiles may be the label's"
        )
    for encoder in _encoders(results, endpoint):
        values = check_inputs(f"features {encoder}", bag_means(results, endpoint, encoder), *known)
        findings += _explained(
            values, "it holds the label, or scanner, stain or encoder do, or the label is that easy to see"
        )
    return findings


def _patient_table(results: "Results", endpoint: str, labels: pd.Series, sites: pd.Series) -> list[Finding]:
    """Columns that this run reads, and those that it does not: there, what was made from the label does no harm yet."""
    patients, metrics = results.patients(), results.config.metrics
    read = {*metrics.clinical, *filter(None, [metrics.annotation])}
    read |= {name for experiment in results.experiments.values() for name in experiment.covariates}
    label = results.config.endpoints[endpoint].column
    columns = [name for name in patients.columns if name not in {"patient_id", label, "slide_id", "path"}]
    used = [name for name in columns if name in read]
    rest = [name for name in columns if name not in read]
    findings = check_inputs(PATIENT_TABLE, _numbers(patients, used), labels, sites)
    unread = check_inputs(f"{PATIENT_TABLE}, not used", _numbers(patients, rest), labels, sites)
    way_out = "it was likely made from the label; this run does not read it, keep it so"
    return findings + _suspected(unread, way_out)


def _suspected(findings: Sequence[Finding], instead: str) -> list[Finding]:
    """Findings of what is no fault of the run: worth a look, and said what else it can be; they end nothing."""
    return [
        replace(finding, state="suspect") if finding.state == "leak" else finding
        for finding in _explained(findings, instead)
    ]


def _explained(findings: Sequence[Finding], instead: str) -> list[Finding]:
    """What else than a column made from the label a finding can be."""
    return [replace(finding, reason=finding.reason.replace(MADE_FROM_LABEL, instead)) for finding in findings]


def _copies(results: "Results", endpoint: str, bags: pd.DataFrame) -> list[Finding]:
    return [
        finding
        for encoder in _encoders(results, endpoint)
        for finding in check_copies(f"copies, features {encoder}", results.features_by_patient(bags, encoder))
    ]


def _encoders(results: "Results", endpoint: str) -> list[str]:
    """Encoders of the endpoint's experiments whose features are here."""
    names = dict.fromkeys(
        experiment.encoder for experiment in results.experiments.values() if experiment.endpoint == endpoint
    )
    return [name for name in names if results.files.has_features(name)]


def _numbers(patients: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Columns as numbers by patient_id, and which cells are filled; of free text (too many classes) its words."""
    filled = patients.set_index("patient_id")[list(columns)].ne("").astype(float)
    parts = [filled.loc[:, filled.nunique() > 1].rename(columns="whether {} is filled".format)]
    for column in columns:
        try:
            parts.append(clinical_inputs(patients, [column]))
        except MilError:
            texts = patients.set_index("patient_id")[column].astype(str).to_dict()
            parts.append(text_inputs({str(patient): text for patient, text in texts.items()}).add_prefix(f"{column} "))
    return pd.concat(parts, axis=1)
