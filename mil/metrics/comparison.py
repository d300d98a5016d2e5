"""Predictions of several experiments -> paired comparisons that differ in one thing: encoder, model or strategy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.endpoints import Endpoint, build_endpoint
from mil.errors import MilError
from mil.metrics.score import whole_counts
from mil.schemas import COMPARISONS
from mil.statistics.arms import ENSEMBLE, GROUPS, OTHER_SITES, OWN_SITE, Scope, label_columns, scopes
from mil.statistics.differences import corrected

ADJUSTED = ("low_adjusted", "high_adjusted", "p_adjusted")
SETTINGS = ("training", "search")
"""Parts of an experiment that a strategy, an encoder or a model may need to have otherwise."""


@dataclass(frozen=True)
class Contrast:
    """Two experiments and the one thing in which they differ; the difference is `first` less `second`."""

    first: str
    second: str
    factor: str
    endpoint: str = ""


def compare(
    predictions: Mapping[str, pd.DataFrame],
    spec: MetricsSpec,
    experiments: Mapping[str, ExperimentSpec] | None = None,
    kinds: Mapping[str, Endpoint] | None = None,
) -> pd.DataFrame:
    """Paired differences of the primary measure (AUROC): one row, and one test, per pair of arms and site.

    With `experiments` only those pairs are compared that share the endpoint and differ in one of encoder,
    model, strategy and covariates (settings of training and search may differ as well), or in these settings alone; without, all pairs with the same labels. On a group of sites only pairs of
    patients of the same site count (`metric` says so), so that no model is rewarded for knowing that sites differ in response or
    scanner. `first_models` and `second_models` are how many models a patient's score is the mean of. `method` is the test, or why
    there is none: of held-out patients the one of `mil.statistics.held_out`, at external sites DeLong's, and below 20 patients of a class
    a permutation test. `low`, `high` and `p` are of this row alone; `low_adjusted`, `high_adjusted` and `p_adjusted` hold for the whole
    family after Holm's correction, and agree with each other: the interval leaves 0 out exactly where p is below the level. A family is
    all pairs of one endpoint and factor: once over training and external sites as groups, once over single sites; a
    site that is a group by itself stands as the group only. `primary` marks the rows on groups of sites. `kinds` are the
    experiments' kinds of endpoint, two classes without.
    """
    kinds = kinds or {name: build_endpoint() for name in predictions}
    return _compared(predictions, list(_contrasts(list(predictions), experiments)), spec, kinds)


def compare_with(
    name: str,
    predictions: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    spec: MetricsSpec,
    endpoint: str,
    kind: Endpoint | None = None,
) -> pd.DataFrame:
    """The same for one experiment less each of `others` (baselines), as the factor `baseline`; two classes without `kind`."""
    contrasts = [Contrast(name, other, "baseline", endpoint) for other in others]
    kinds = dict.fromkeys([name, *others], kind or build_endpoint())
    return _compared({name: predictions, **others}, contrasts, spec, kinds)


def _compared(
    predictions: Mapping[str, pd.DataFrame], contrasts: list[Contrast], spec: MetricsSpec, kinds: Mapping[str, Endpoint]
) -> pd.DataFrame:
    checked = {name: kinds[name].checked(table, f"predictions of {name}") for name, table in predictions.items()}
    arms = {name: _arms(table) for name, table in checked.items()}
    rows = [
        row
        for contrast in contrasts
        for first, second in _pairs(arms[contrast.first], arms[contrast.second])
        if (row := _row(contrast, first, second, spec, kinds[contrast.first])) is not None
    ]
    table = pd.DataFrame(rows, columns=[*COMPARISONS, "tested"]).assign(correction="")
    grouped = table["site"].isin(GROUPS)
    table["primary"] = grouped.astype(int)  # 1 or 0, which a table keeps as numbers
    for (_, factor, together), family in table.groupby(["endpoint", "factor", grouped]):
        table.loc[family.index, list(ADJUSTED)] = corrected(family["tested"].tolist(), spec.confidence)
        where = "groups of sites" if together else "single sites"
        number = int(family["p"].notna().sum())
        table.loc[family.index, "correction"] = f"Holm, {number} comparisons of {factor} on {where}"
    return whole_counts(table[list(COMPARISONS)].astype(dict.fromkeys(ADJUSTED, float)))


def _arms(table: pd.DataFrame) -> dict[tuple[str, str, str], Scope]:
    return {(scope.trained_on, scope.split, scope.site): scope for scope in scopes(table)}


def _contrasts(names: list[str], experiments: Mapping[str, ExperimentSpec] | None) -> Iterator[Contrast]:
    for earlier, later in combinations(names, 2):
        if experiments is None:
            yield Contrast(later, earlier, "experiment")
            continue
        experiment, other = experiments[earlier], experiments[later]
        parts = ("encoder", "model", "strategy", "training", "covariates", "search")
        differing = [part for part in parts if getattr(experiment, part) != getattr(other, part)]
        alike = experiment.endpoint == other.endpoint and experiment.protocol == other.protocol
        factors = [part for part in differing if part not in SETTINGS] or differing[:1]
        if not alike or len(factors) != 1:
            continue
        swap = factors[0] == "strategy" and experiment.strategy.collaboration > other.strategy.collaboration
        first, second = (earlier, later) if swap else (later, earlier)
        yield Contrast(first, second, factors[0], experiment.endpoint)


def _pairs(
    first: Mapping[tuple[str, str, str], Scope], second: Mapping[tuple[str, str, str], Scope]
) -> Iterator[tuple[Scope, Scope]]:
    """Scopes to set side by side: the same arm where both have it, else one model of all against every local arm."""
    groups = {scope.split: set(scope.table["site"]) for scope in first.values() if scope.site in GROUPS}
    for (trained_on, split, site), scope in first.items():
        if (split == "transfer" and trained_on != OTHER_SITES and "+" not in trained_on) or groups.get(split) == {site}:
            continue
        for (other_on, other_split, other_site), other in second.items():
            if (split, site) != (other_split, other_site):
                continue
            if _comparable(trained_on, other_on, split, first, second):
                yield scope, other


def _comparable(
    trained_on: str,
    other_trained_on: str,
    split: str,
    first: Mapping[tuple[str, str, str], Scope],
    second: Mapping[tuple[str, str, str], Scope],
) -> bool:
    locals_of = [any(key[0] == OWN_SITE for key in arms) for arms in (first, second)]
    if all(locals_of):
        return trained_on == other_trained_on and trained_on == (ENSEMBLE if split == "external" else OWN_SITE)
    if not any(locals_of):
        return trained_on == other_trained_on
    local = trained_on if locals_of[0] else other_trained_on
    return split == "external" or local in {OWN_SITE, ENSEMBLE}


def _row(contrast: Contrast, first: Scope, second: Scope, spec: MetricsSpec, kind: Endpoint) -> dict[str, Any] | None:
    keys = ["patient_id", "site"]
    both = first.table[keys].merge(second.table[keys], on=keys)["patient_id"]
    scope, other = first.of_patients(both), second.of_patients(both)
    if any((scope.table[name] != other.table[name]).any() for name in label_columns(scope.table)):
        if contrast.endpoint:
            raise MilError(
                f"{contrast.first} and {contrast.second}: a patient's label differs; run `mil predict` again"
            )
        return None
    pair = kind.compared(scope, other, spec)
    if pair is None:
        return None
    tested = pair.tested
    return {
        "endpoint": contrast.endpoint,
        "factor": contrast.factor,
        "first": contrast.first,
        "first_trained_on": first.trained_on,
        "second": contrast.second,
        "second_trained_on": second.trained_on,
        "split": first.split,
        "site": first.site,
        "patients": len(scope.table),
        "positives": kind.positives(scope.table),
        "first_models": first.models,
        "second_models": second.models,
        "metric": f"{kind.primary.name}_within_sites" if first.site in GROUPS else kind.primary.name,
        "first_value": pair.values[0],
        "second_value": pair.values[1],
        "difference": tested.difference,
        "low": tested.low,
        "high": tested.high,
        "p": tested.p,
        "method": pair.method,
        "tested": tested,
    }
