"""Predictions of several experiments -> paired comparisons that differ in one thing: encoder, model or strategy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.endpoints.kinds import KINDS, Kind, build_kind
from mil.endpoints.kinds.rows import fold_values
from mil.errors import MilError
from mil.metrics.score import whole_counts
from mil.schemas import COMPARISONS
from mil.statistics import delong
from mil.statistics.arms import ENSEMBLE, GROUPS, OTHER_SITES, OWN_SITE, Scope, label_columns, scopes
from mil.statistics.folds import (
    KEYS,
    FoldTest,
    corrected_resampled_t,
    fold_aurocs,
    paired_in_folds,
    placements_in_folds,
)
from mil.statistics.multiplicity import holm

OVER_FOLDS = "corrected resampled t-test"
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
    kinds: Mapping[str, Kind] | None = None,
) -> pd.DataFrame:
    """Paired AUROC differences (DeLong; bootstrap; on folds the corrected resampled t-test) with Holm's correction.

    With `experiments` only those pairs are compared that share the endpoint and differ in one of encoder,
    model, strategy and covariates (settings of training and search may differ as well), or in these settings alone; without, all pairs with the same labels. On a group of sites only pairs of
    patients of the same site count (`metric` says so), so that no model is rewarded for knowing that sites differ in response or
    scanner. `first_models` and `second_models` are how many models a patient's score is the mean of. Holm's correction runs over
    all pairs of one endpoint, factor and method: once over training and external sites as groups, once over single sites; a
    site that is a group by itself stands as the group only. `primary` marks the row to quote of each pair, on
    groups of sites: at external sites DeLong's test, where the models are given; on held-out patients the corrected resampled
    t-test, since training sets overlap and DeLong's test, which takes the models as given, then finds 13 % differences where
    there is none and 5 % is said (`benchmarks/coverage.py`, `folds`). `kinds` are the experiments' kinds of endpoint, two classes
    without; of another kind the primary measure is compared, by a paired bootstrap in DeLong's stead.
    """
    kinds = kinds or {name: build_kind() for name in predictions}
    return _compared(predictions, list(_contrasts(list(predictions), experiments)), spec, kinds)


def paired_rows(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows of the paired test on patients that each kind shows, a row a pair and site."""
    named = {
        f"{KINDS[name].primary.name}{where}": KINDS[name].paired for name in KINDS for where in ("", "_within_sites")
    }
    return comparisons[comparisons["method"] == comparisons["metric"].map(named)]


def compare_with(
    name: str, predictions: pd.DataFrame, others: Mapping[str, pd.DataFrame], spec: MetricsSpec, endpoint: str
) -> pd.DataFrame:
    """The same for one experiment less each of `others` (baselines), as the factor `baseline`; two classes."""
    contrasts = [Contrast(name, other, "baseline", endpoint) for other in others]
    return _compared({name: predictions, **others}, contrasts, spec, {one: build_kind() for one in (name, *others)})


def _compared(
    predictions: Mapping[str, pd.DataFrame], contrasts: list[Contrast], spec: MetricsSpec, kinds: Mapping[str, Kind]
) -> pd.DataFrame:
    checked = {name: kinds[name].checked(table, f"predictions of {name}") for name, table in predictions.items()}
    arms = {name: _arms(table) for name, table in checked.items()}
    folded = {name: Folds.of(table, kinds[name]) for name, table in checked.items()}
    rows = []
    for contrast in contrasts:
        for first, second in _pairs(arms[contrast.first], arms[contrast.second]):
            kind = kinds[contrast.first]
            found = list(_rows(contrast, first, second, spec, kind))
            rows += found
            if found and first.split != "external":
                pair = (folded[contrast.first], first), (folded[contrast.second], second)
                rows += [{**found[0], **row} for row in _fold_rows(pair, spec, kind)]
    table = whole_counts(pd.DataFrame(rows, columns=list(COMPARISONS)).assign(correction="", p_adjusted=np.nan))
    grouped = table["site"].isin(GROUPS)
    folds = table["method"].str.startswith(OVER_FOLDS)
    pair = [name for name in COMPARISONS[:8] if name != "factor"]
    tested = table[folds].set_index(pair).index
    leads = table.index.isin(paired_rows(table).index)
    wanted = grouped & (folds | (leads & ~table.set_index(pair).index.isin(tested)))
    table["primary"] = wanted.astype(int)  # 1 or 0, which a table keeps as numbers
    for (_, factor, _, together), family in table.groupby(["endpoint", "factor", _kind(table["method"]), grouped]):
        table.loc[family.index, "p_adjusted"] = holm(family["p"].to_numpy())
        where = "groups of sites" if together else "single sites"
        number = int(family["p"].notna().sum())
        table.loc[family.index, "correction"] = f"Holm, {number} comparisons of {factor} on {where}"
    return table


def _kind(methods: pd.Series) -> pd.Series:
    """The method without what differs from pair to pair (the number of folds)."""
    return methods.str.replace(r", \d+ folds", "", regex=True)


@dataclass(frozen=True)
class Folds:
    """What tests on folds need of one experiment's predictions."""

    values: pd.DataFrame
    """`value`: the primary measure of every fold."""
    placements: Mapping[tuple[str, ...], pd.DataFrame]
    number: int
    """Folds of a repeat."""

    @classmethod
    def of(cls, predictions: pd.DataFrame, kind: Kind) -> "Folds":
        """The primary measure of every fold, and, of two classes, placements of the patients in their folds."""
        number = predictions.loc[predictions["split"] != "external", "fold"].nunique()
        if kind.name != "binary":
            return cls(fold_values(predictions, kind), {}, number)
        values = fold_aurocs(predictions).rename(columns={"auroc": "value"})
        return cls(values, placements_in_folds(predictions), number)


def _arms(table: pd.DataFrame) -> dict[tuple[str, str, str], Scope]:
    return {(scope.trained_on, scope.split, scope.site): scope for scope in scopes(table)}


def _contrasts(names: list[str], experiments: Mapping[str, ExperimentSpec] | None) -> Iterator[Contrast]:
    for earlier, later in combinations(names, 2):
        if experiments is None:
            yield Contrast(later, earlier, "experiment")
            continue
        one, other = experiments[earlier], experiments[later]
        parts = ("encoder", "model", "strategy", "training", "covariates", "search")
        differing = [part for part in parts if getattr(one, part) != getattr(other, part)]
        alike = one.endpoint == other.endpoint and one.protocol == other.protocol
        factors = [part for part in differing if part not in SETTINGS] or differing[:1]
        if not alike or len(factors) != 1:
            continue
        swap = factors[0] == "strategy" and one.strategy.collaboration > other.strategy.collaboration
        first, second = (earlier, later) if swap else (later, earlier)
        yield Contrast(first, second, factors[0], one.endpoint)


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
    one: str,
    other: str,
    split: str,
    first: Mapping[tuple[str, str, str], Scope],
    second: Mapping[tuple[str, str, str], Scope],
) -> bool:
    locals_of = [any(key[0] == OWN_SITE for key in arms) for arms in (first, second)]
    if all(locals_of):
        return one == other and one == (ENSEMBLE if split == "external" else OWN_SITE)
    if not any(locals_of):
        return one == other
    local = one if locals_of[0] else other
    return split == "external" or local in {OWN_SITE, ENSEMBLE}


def _rows(contrast: Contrast, first: Scope, second: Scope, spec: MetricsSpec, kind: Kind) -> Iterator[dict[str, Any]]:
    keys = ["patient_id", "site"]
    own = first.table[first.table[keys].apply(tuple, axis=1).isin(set(second.table[keys].apply(tuple, axis=1)))]
    own = own.reset_index(drop=True)
    other = own[keys].merge(second.table, on=keys)
    if any((own[name] != other[name]).any() for name in label_columns(own)):
        if contrast.endpoint:
            raise MilError(
                f"{contrast.first} and {contrast.second}: a patient's label differs; run `mil predict` again"
            )
        return
    common = {
        "endpoint": contrast.endpoint,
        "factor": contrast.factor,
        "first": contrast.first,
        "first_trained_on": first.trained_on,
        "second": contrast.second,
        "second_trained_on": second.trained_on,
        "split": first.split,
        "site": first.site,
        "patients": len(own),
        "positives": kind.positives(own),
        "first_models": first.models,
        "second_models": second.models,
        "metric": f"{kind.primary.name}_within_sites" if first.site in GROUPS else kind.primary.name,
    }
    for pair in kind.pairs_tested(own, other, spec):
        yield {**common, **_values(*pair.values), **_tested(pair.tested), "method": pair.method}


def _fold_rows(pair: tuple[tuple[Folds, Scope], ...], spec: MetricsSpec, kind: Kind) -> Iterator[dict[str, Any]]:
    """The same contrast on patients of one fold, which one model judged, and on the primary measure fold by fold."""
    keys = [(scope.trained_on, scope.split, scope.site) for _, scope in pair]
    placed = [folds.placements.get(key) for (folds, _), key in zip(pair, keys, strict=True)]
    if placed[0] is not None and placed[1] is not None:
        yield {
            **_values(*(_mean_placement(table) for table in placed if table is not None)),
            **_tested(paired_in_folds(placed[0], placed[1], spec.confidence)),
            "metric": "auroc_within_folds",
            "method": "DeLong, paired, within folds",
        }
    parts = []
    for (folds, _), key in zip(pair, keys, strict=True):
        mine = (folds.values[list(KEYS)] == key).all(axis=1)
        parts.append(folds.values[mine].set_index(["repeat", "fold"])["value"])
    both = pd.concat(parts, axis=1, keys=["first", "second"], join="inner")
    number = min(folds.number for folds, _ in pair)
    if len(both) < 2 or number < 2:
        return
    tested = corrected_resampled_t((both["first"] - both["second"]).to_numpy(), 1 / (number - 1), spec.confidence)
    yield {
        **_values(both["first"].mean(), both["second"].mean()),
        **_tested(tested),
        "metric": f"{kind.primary.name}_mean_of_folds",
        "method": f"{OVER_FOLDS}, {len(both)} folds",
    }


def _mean_placement(table: pd.DataFrame) -> float:
    return float(table.groupby("label")["placement"].mean().mean())


def _values(first: float, second: float) -> dict[str, float]:
    return {"first_value": first, "second_value": second}


def _tested(found: delong.Difference | FoldTest) -> dict[str, float]:
    return {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p}
