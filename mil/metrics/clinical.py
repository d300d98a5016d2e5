"""The main experiment's scores and the patient table -> subgroups, associations with clinical columns, survival by prediction."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pandas as pd
import scipy

from mil.bags.covariates import clinical_inputs, follow_up
from mil.errors import Absent, MilError
from mil.metrics.added_value import added_value
from mil.metrics.subgroups import subgroup_aurocs
from mil.schemas import ASSOCIATIONS, SUBGROUPS, SURVIVAL
from mil.statistics.arms import OTHER_SITES, Scope
from mil.statistics.held_out import pairs_of
from mil.statistics.multiplicity import holm
from mil.statistics.survival import c_index_interval, cox_models, kaplan_meier, log_rank
from mil.tables import stacked

if TYPE_CHECKING:
    from mil.config import MetricsSpec
    from mil.results.results import Results

SPEARMAN, ODDS, HAZARD, CONCORDANCE, LOG_RANK = "Spearman", "odds ratio", "hazard ratio", "c-index", "log-rank"
ADDED = ", likelihood ratio of the score"
"""Behind `ODDS` and `HAZARD`: the test of what the score adds to the clinical columns."""
GROUPS = {1: "predicted positive", 0: "predicted negative"}
MIN_GROUP = 3
"""Fewest patients of a group, and fewest events, for curves of survival."""
Row = dict[str, Any]


def clinical_tables(results: "Results", spec: "MetricsSpec") -> dict[str, pd.DataFrame]:
    """Tables `associations` and `survival` of the main experiment, `subgroups` of all; without rows where the cohort lacks their columns.

    They are made for endpoints of two classes. Patients of training sites count with their held-out scores.
    """
    curves, rows = pd.DataFrame(columns=SURVIVAL), []
    patients, scores, there = pd.DataFrame(), pd.DataFrame(), []
    with suppress(Absent):  # no patient table or no prediction on this machine
        patients, scores, there = results.patients(), main_scores(results), _main_scopes(results)
    if len(scores) and results.kind.two_classes:
        by_patient = scores.set_index("patient_id")
        columns = clinical_columns(spec)
        if columns:
            rows += correlations(by_patient["score"], clinical_inputs(patients, columns))
            given = by_patient, patients, columns, spec.confidence, _inflation(there)
            rows += _or_reason(ODDS, lambda: _odds(*given))
        if spec.time is not None and spec.event is not None:
            followed = by_prediction(results, by_patient)
            sizes = followed["group"].value_counts().reindex(GROUPS.values(), fill_value=0)
            if min(*sizes, followed["event"].sum()) >= MIN_GROUP:
                curves = kaplan_meier(followed, spec.confidence)[list(SURVIVAL)]
                rows += _survival(followed, patients, spec)
    return {
        "subgroups": _subgroups(results, spec),
        "associations": pd.DataFrame(rows, columns=ASSOCIATIONS),
        "survival": curves,
    }


def _subgroups(results: "Results", spec: "MetricsSpec") -> pd.DataFrame:
    parts = [pd.DataFrame(columns=["experiment", *SUBGROUPS])]
    for name in results.experiments if spec.subgroups else ():
        with suppress(Absent):
            if results.kind_of(name).two_classes:
                there, scores = _main_scopes(results, name), main_scores(results, name)
                given = scores, results.patients(), spec.subgroups, spec.confidence
                table = subgroup_aurocs(*given, _held_out(there), there[0].trained_on == OTHER_SITES)
                parts.append(table.assign(experiment=name))
    return stacked(parts)[parts[0].columns]


def main_scores(results: "Results", experiment: str | None = None) -> pd.DataFrame:
    """patient_id, site, label and score of all sites' patients, by the main experiment or another one.

    A patient's score is the mean over models that did not see them.
    """
    return pd.concat([scope.table for scope in _main_scopes(results, experiment)], ignore_index=True)


def _held_out(there: list[Scope]) -> pd.DataFrame | None:
    """Rows by repeat and fold of the patients of `there` who are held out; None where nobody is."""
    folds = [scope.folds for scope in there if scope.folds is not None]
    return pd.concat(folds, ignore_index=True) if folds else None


def _inflation(there: list[Scope]) -> float:
    """How many times the variance of what all scores of `there` say together is, since held-out patients trained one another's models."""
    held = _held_out(there)
    if held is None or not (pairs := pairs_of(held)).total:
        return 1.0
    share = held["patient_id"].nunique() / sum(len(scope.table) for scope in there)
    return 1 + share * (pairs.inflation() - 1)


def _main_scopes(results: "Results", experiment: str | None = None) -> list[Scope]:
    """The sites' scopes; where each site is left out, the one of all."""
    there = []
    for site in results.sites:
        with suppress(Absent):
            there.append(results.main_scope(site, experiment))
    name = experiment or results.main
    there = there or [scope for scope in results.scopes(name) if scope.trained_on == OTHER_SITES]
    if not there:
        raise Absent(f"{name} judges no patient who is held out or at an external site")
    return there


def clinical_columns(spec: "MetricsSpec") -> tuple[str, ...]:
    """The annotation and the clinical columns of the settings."""
    return tuple(dict.fromkeys((*((spec.annotation,) if spec.annotation else ()), *spec.clinical)))


def by_prediction(results: "Results", scores: pd.DataFrame) -> pd.DataFrame:
    """time, event, score and group (of `GROUPS`) by patient_id; `scores` by patient_id, a score of 0.5 or more is positive."""
    spec = results.config.metrics
    table = follow_up(results.patients(), str(spec.time), str(spec.event)).join(scores, how="inner")
    return table.assign(group=(table["score"] >= 0.5).astype(int).map(GROUPS))


def correlations(scores: pd.Series, inputs: pd.DataFrame) -> Iterator[Row]:
    """Spearman's correlation of the score (by patient_id) with each column that varies; p also after Holm's correction."""
    inputs = inputs.reindex(scores.index)
    names = [column for column in inputs.columns if inputs[column].nunique() > 1]
    tested = [scipy.stats.spearmanr(inputs[name].dropna(), scores[inputs[name].notna()]) for name in names]
    adjusted = holm(pd.Series([float(test.pvalue) for test in tested], dtype=float).to_numpy())
    for name, test, corrected in zip(names, tested, adjusted, strict=True):
        row = {"analysis": SPEARMAN, "variable": str(name), "patients": int(inputs[name].notna().sum())}
        yield row | {"value": float(test.statistic), "p": float(test.pvalue), "p_adjusted": float(corrected)}


def _odds(
    scores: pd.DataFrame, patients: pd.DataFrame, columns: tuple[str, ...], confidence: float, inflation: float
) -> Iterator[Row]:
    added = added_value(scores, patients, columns, confidence, inflation)
    for row in added.ratios.rename(columns={"covariate": "variable", "ratio": "value"}).to_dict("records"):
        yield {**row, "analysis": ODDS, "patients": added.patients}
    method = f"overlap of training sets counted, variance x {inflation:.2f}" if inflation > 1 else ""
    row = {"analysis": ODDS + ADDED, "patients": added.patients, "value": added.likelihood_ratio}
    yield {**row, "p": added.p, "method": method}


def _survival(followed: pd.DataFrame, patients: pd.DataFrame, spec: "MetricsSpec") -> Iterator[Row]:
    """The score's c-index, the log-rank test of the groups, and the Cox model with clinical columns and the score."""
    counted = {"patients": len(followed), "events": int(followed["event"].sum())}
    value, low, high = c_index_interval(followed, spec.confidence)
    method = "jackknife, logit scale; above 0.5: a higher score, longer without event"
    yield {"analysis": CONCORDANCE, **counted, "value": value, "low": low, "high": high, "method": method}
    yield {"analysis": LOG_RANK, **counted, "p": log_rank(followed)}
    yield from _or_reason(HAZARD, lambda: _hazards(followed, patients, spec))


def _hazards(followed: pd.DataFrame, patients: pd.DataFrame, spec: "MetricsSpec") -> Iterator[Row]:
    models = cox_models(followed, patients, spec.clinical, spec.confidence)
    counted = {"patients": models.patients, "events": models.events}
    ratios = models.ratios[models.ratios["model"] == "clinical + score"].drop(columns="model")
    for row in ratios.rename(columns={"covariate": "variable", "ratio": "value"}).to_dict("records"):
        yield {**row, "analysis": HAZARD, **counted}
    yield {"analysis": HAZARD + ADDED, **counted, "value": models.likelihood_ratio, "p": models.p}


def _or_reason(analysis: str, rows: Callable[[], Iterator[Row]]) -> list[Row]:
    """The rows, or one that says why there are none."""
    try:
        return list(rows())
    except MilError as error:
        return [{"analysis": analysis, "method": f"not made: {error}"}]
