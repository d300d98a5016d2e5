"""Predictions of one model under several strategies -> each strategy's AUROC by site, and less pooled, less local, paired.

A hospital's own choice is between three things: its own model, another hospital's, and one that they train together. So a
strategy is set against the pooled model, against each training site's own model on its own patients, and against `elsewhere`:
at every site the mean AUROC of the local models that were not trained there.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mil.config import MetricsSpec
from mil.endpoints import Endpoint, build_endpoint
from mil.endpoints.bounds import WIDEST
from mil.endpoints.endpoint import at_rows
from mil.endpoints.measures import PAIRED_BOOTSTRAP, paired_bootstrap
from mil.errors import Absent
from mil.metrics.comparison import ADJUSTED
from mil.metrics.score import whole_counts
from mil.results.results import Results
from mil.schemas import STRATEGIES
from mil.statistics import delong, ranking
from mil.statistics.arms import APART, ENSEMBLE, GROUPS, OWN_SITE, Scope, patient_scores, scopes, score_columns
from mil.statistics.differences import Difference, corrected
from mil.statistics.held_out import inflation, paired, pairs_of

POOLED, ELSEWHERE = "pooled", "locals elsewhere"


def strategy_table(
    predictions: Mapping[str, pd.DataFrame],
    spec: MetricsSpec,
    pooled: str | None,
    local: str | None,
    kind: Endpoint | None = None,
) -> pd.DataFrame:
    """A row an arm, site and thing that it is set against; `low` and `high` bound the value or, there, the difference.

    `pooled` and `local` name the experiments that the others are set against; without one its rows are missing. On a group of
    sites only pairs of patients of the same site count. Holm's correction runs over all strategies of one thing they are set
    against: once over groups of sites, once over single sites. `value` is the AUROC, or of another `kind` its primary measure.
    """
    kind = kind or build_endpoint()
    checked = {name: kind.checked(table, f"predictions of {name}") for name, table in predictions.items()}
    arms = {name: _arms(table, kind) for name, table in checked.items()}
    scores, by_fold = (patient_scores(checked[local], apart) if local else None for apart in ((), APART))
    rows: list[dict[str, Any]] = []
    for name, by_arm in arms.items():
        for scope in by_arm.values():
            stated = _stated(name, scope, kind)
            value, low, high, method = kind.interval(scope, spec)
            rows.append({**stated, "value": value, "low": low, "high": high, "against": "", "method": method})
            if name == local and scope.trained_on != ENSEMBLE:
                continue
            others = {POOLED: _of(arms, pooled, scope), OWN_SITE: _of(arms, local, scope, (OWN_SITE, scope.site))}
            for against, other in others.items():
                if other is not None and (against, name) != (POOLED, pooled):
                    rows.append({**stated, "value": value, "against": against, **_less(scope, other, spec, kind)})
            if scores is not None and by_fold is not None:
                difference = _less_elsewhere(scope, scores, by_fold, spec, kind)
                rows += [{**stated, "value": value, "against": ELSEWHERE, **difference}] if difference else []
    table = pd.DataFrame(rows, columns=[*STRATEGIES, "tested"]).assign(correction="")
    tested = table[table["tested"].notna()]
    for _, family in tested.groupby(["against", tested["site"].isin(GROUPS)]):
        table.loc[family.index, list(ADJUSTED)] = corrected(family["tested"].tolist(), spec.confidence)
        table.loc[family.index, "correction"] = f"Holm, {int(family['p'].notna().sum())} comparisons"
    return whole_counts(table[list(STRATEGIES)].astype(dict.fromkeys(ADJUSTED, float)))


def strategies_of(results: Results, spec: MetricsSpec) -> pd.DataFrame:
    """`strategy_table` of the main experiment's family; a table without rows where no experiment of it was predicted."""
    predictions = {}
    for name in results.family():
        with suppress(Absent):
            predictions[name] = results.predictions(name)
    first: dict[str, str] = {}
    for name in predictions:
        first.setdefault(results.experiments[name].strategy.name, name)
    if not predictions:
        return pd.DataFrame(columns=list(STRATEGIES))
    return strategy_table(predictions, spec, first.get("pooled"), first.get("local"), results.kind)


def elsewhere(scope: Scope, scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For every site in `scope` the scores (patients, models) of its patients by the local models not trained there.

    `scores`: the local experiment's, a row a model and patient. Patients as in `scope`, a row each; sites that no other model
    judged are left out.
    """
    models = scores[~scores["trained_on"].isin([OWN_SITE, ENSEMBLE])]
    models = models[models["trained_on"] != models["site"]]
    by_site = {}
    for site, patients in scope.table.groupby("site"):
        wide = models[models["site"] == site].pivot(index="patient_id", columns="trained_on", values="score")
        if len(wide.columns):
            by_site[str(site)] = wide.loc[patients["patient_id"]]
    return by_site


def _arms(table: pd.DataFrame, kind: Endpoint) -> dict[tuple[str, str, str], Scope]:
    candidates = [scope for scope in scopes(table) if scope.split != "transfer"]
    single = {scope.split for scope in candidates if scope.site in GROUPS and scope.table["site"].nunique() == 1}
    return {
        (scope.trained_on, scope.split, scope.site): scope
        for scope in candidates
        if kind.has_within(scope.table) and not (scope.site in GROUPS and scope.split in single)
    }


def _of(
    arms: Mapping[str, dict[tuple[str, str, str], Scope]],
    name: str | None,
    scope: Scope,
    trained_on: tuple[str, ...] = (),
) -> Scope | None:
    """The same place in another experiment; there of an arm in `trained_on`, or its only one."""
    there = arms.get(name or "", {})
    others = [
        other
        for (on, split, site), other in there.items()
        if (split, site) == (scope.split, scope.site) and (not trained_on or on in trained_on)
    ]
    return others[0] if others else None


def _stated(name: str, scope: Scope, kind: Endpoint) -> dict[str, Any]:
    return {
        "experiment": name,
        "trained_on": scope.trained_on,
        "split": scope.split,
        "site": scope.site,
        "patients": len(scope.table),
        "positives": kind.positives(scope.table),
    }


def _less(scope: Scope, other: Scope, spec: MetricsSpec, kind: Endpoint) -> dict[str, Any]:
    """The difference to another arm on the same patients."""
    keys = ["patient_id", "site"]
    both = scope.table[keys].merge(other.table[keys], on=keys)["patient_id"]
    pair = kind.compared(scope.of_patients(both), other.of_patients(both), spec)
    if pair is None:
        return {"method": "not defined: a score does not vary"}
    return {"value": pair.values[0], "against_value": pair.values[1], **_tested(pair.tested), "method": pair.method}


def _less_elsewhere(
    scope: Scope, scores: pd.DataFrame, by_fold: pd.DataFrame, spec: MetricsSpec, kind: Endpoint
) -> dict[str, Any] | None:
    """The difference to the mean of the local models elsewhere, sites weighted as in the measure within sites."""
    others = elsewhere(scope, scores)
    table = scope.table[scope.table["site"].isin(list(others))].reset_index(drop=True)
    if not len(table) or not kind.has_within(table):
        return None
    if few := kind.too_few(table):
        return {"method": few.replace("interval", "test", 1)}
    if kind.two_classes and scope.folds is not None:
        return _pairs_less_elsewhere(scope.of_patients(table["patient_id"]), others, spec)
    weights = np.concatenate([np.ones((1, len(table))), kind.weights(table, spec)])
    if kind.two_classes:
        here = kind.within(kind.labels_of(table), kind.scores_of(table), weights, table["site"].to_numpy())
        there = _auroc_elsewhere(table, others, weights)
    else:
        of_sites = scope.of_patients(table["patient_id"])
        here, there = _mean_elsewhere(of_sites, others, by_fold, weights, kind)
    chance = float(here[0]) if kind.primary.chance is None else kind.primary.chance
    factor = 1.0 if scope.folds is None else inflation(float(here[0]), float(np.nanvar(here[1:])), None, chance)
    tested = paired_bootstrap(here, there, spec.confidence, WIDEST[kind.primary.scale], factor)
    return {"value": float(here[0]), "against_value": float(there[0]), **_tested(tested), "method": PAIRED_BOOTSTRAP}


def _pairs_less_elsewhere(scope: Scope, others: Mapping[str, pd.DataFrame], spec: MetricsSpec) -> dict[str, Any] | None:
    """The same of held-out patients, on pairs of one fold; models elsewhere count alike within each site."""
    assert scope.folds is not None
    here = pairs_of(scope.folds)
    wins = []
    for (site, part), counts in zip(scope.folds.groupby("site", sort=True), here.counts, strict=True):
        known = part.drop_duplicates("patient_id").sort_values(["label", "patient_id"])
        judged = others[str(site)].loc[known["patient_id"]].to_numpy()
        is_positive = known["label"].to_numpy() == 1
        gaps = judged[is_positive][:, None] - judged[~is_positive][None]
        wins.append(counts * ((gaps > 0) + 0.5 * (gaps == 0)).mean(axis=2))
    there = replace(here, wins=tuple(wins))
    if not here.total:
        return None
    tested, method = paired(here, there, spec.confidence)
    return {"value": here.auroc, "against_value": there.auroc, **_tested(tested), "method": method}


def _auroc_elsewhere(table: pd.DataFrame, others: Mapping[str, pd.DataFrame], weights: np.ndarray) -> np.ndarray:
    """Mean AUROC of each site's models from elsewhere, sites weighted by their pairs, in each resample."""
    labels, sites = table["label"].to_numpy(), table["site"].to_numpy()
    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for site, wide in others.items():
        chosen = sites == site
        labels_here, part = labels[chosen], weights[:, chosen]
        if not delong.both_classes(labels_here):
            continue
        number = part[:, labels_here == 1].sum(1) * part[:, labels_here == 0].sum(1)
        wide = wide.loc[table["patient_id"][chosen]]
        areas = [ranking.auroc(labels_here, wide[model].to_numpy(), part) for model in wide.columns]
        wins += np.mean(areas, axis=0) * number
        pairs += number
    return wins / pairs


def _mean_elsewhere(
    scope: Scope, others: Mapping[str, pd.DataFrame], scores: pd.DataFrame, weights: np.ndarray, kind: Endpoint
) -> tuple[np.ndarray, np.ndarray]:
    """The primary measure of `scope`, and its mean over choices of one model from elsewhere a site, so that each site's are used alike.

    All of them are formed over the same sites.
    """
    most = max(len(wide.columns) for wide in others.values())
    table, groups = kind.groups_of(scope)
    keys = ["patient_id", *(name for name in APART if name in table)]
    by_model = scores.groupby(["trained_on", *keys])[score_columns(scores)].mean()
    judged = [kind.scores_of(table)]
    for turn in range(most):
        model = {site: wide.columns[turn % len(wide.columns)] for site, wide in others.items()}
        rows = by_model.loc[list(zip(table["site"].map(model), *(table[key] for key in keys), strict=True))]
        judged.append(kind.scores_of(rows.reset_index(drop=True)))
    here, *there = kind.within_same(kind.labels_of(table), judged, at_rows(weights, scope, table), groups)
    return here, np.mean(there, axis=0)


def _tested(difference: Difference) -> dict[str, Any]:
    return {
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "tested": difference,
    }
