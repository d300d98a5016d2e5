"""Bag table, census and patient table -> characteristics of the patients by site, with tests between the sites."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from mil.errors import Absent
from mil.schemas import COHORT
from mil.statistics.independence import chi_squared
from mil.statistics.intervals import wilson
from mil.tables import by_slide

if TYPE_CHECKING:
    from mil.results.results import Results

TILES = "tiles per patient"
"""The characteristic that no column of a table holds."""
MAX_LEVELS = 8
MIN_NUMBERS = 7  # fewer distinct numbers are levels (grade), not a measure
NAMING = ("site", "path", "slide_id", "mpp")
"""Columns of a patient table that describe no patient."""
Row = dict[str, Any]


def characteristics(results: "Results", confidence: float) -> pd.DataFrame:
    """Table `COHORT` of the main endpoint's patients: its label, tiles per patient, and every column of the patient table."""
    bags = results.bags(results.endpoint)
    sites = [site for site in results.sites if site in set(bags["site"])]
    site_of = pd.Series(pd.Categorical(bags["site"], sites), index=bags["patient_id"])
    labels, kind = bags.set_index("patient_id")["label"], results.kind
    slides = by_slide(bags).merge(results.census()[["slide_id", "num_tiles"]], on="slide_id")
    rows: list[Row] = []
    if kind.scaled:
        rows += _measure(results.endpoint, labels.astype(float), site_of)
    elif not kind.having:
        rows += _levels(results.endpoint, kind.named(bags.set_index("patient_id")), site_of, confidence)
    else:
        rows += _levels(results.endpoint, labels.astype(int).map({1: "yes", 0: "no"}), site_of, confidence)
    rows += _measure(TILES, slides.groupby("patient_id")["num_tiles"].sum(), site_of)
    try:
        patients = results.patients().set_index("patient_id")
    except Absent:
        return pd.DataFrame(rows, columns=COHORT)
    for column, values in _clinical(results, patients.loc[patients.index.intersection(bags["patient_id"])]):
        numbers = pd.to_numeric(values, errors="coerce")
        if values.empty:
            continue
        if numbers.notna().all() and numbers.nunique() >= MIN_NUMBERS:
            rows += _measure(str(column), numbers, site_of)
        elif set(values) <= {"0", "1"}:
            rows += _levels(str(column), values.map({"1": "yes", "0": "no"}), site_of, confidence)
        elif values.nunique() <= MAX_LEVELS:
            rows += _levels(str(column), values, site_of, confidence)
    return pd.DataFrame(rows, columns=COHORT)


def without_rows(results: "Results") -> list[str]:
    """Columns of the patient table that have no row, since they hold more than `MAX_LEVELS` different texts: diagnoses, dates, remarks."""
    try:
        patients = results.patients().set_index("patient_id")
    except Absent:
        return []
    used = patients.loc[patients.index.intersection(results.bags(results.endpoint)["patient_id"])]
    described = set(results.cohort()["variable"])
    return [name for name, values in _clinical(results, used) if len(values) and name not in described]


def _clinical(results: "Results", patients: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """The columns of `patients` that are no endpoint's and describe a patient, with the cells that are filled.

    A column that is called as the endpoint or `TILES` (endpoint `grade`, of column `grade_high`) gets a name of its own.
    """
    endpoints = {endpoint.column for endpoint in results.config.endpoints.values()}
    for column in [name for name in patients.columns if name not in {*endpoints, *NAMING}]:
        taken = column in {results.endpoint, TILES}
        yield f"{column} (patient table)" if taken else str(column), patients.loc[patients[column] != "", column]


def _measure(name: str, values: pd.Series, site_of: pd.Series) -> Iterator[Row]:
    """Median and quartiles of each site and of all; a Kruskal-Wallis test."""
    where = site_of.reindex(values.index)
    parts = {site: values[where == site].to_numpy(float) for site in site_of.cat.categories}
    filled, p = [part for part in parts.values() if len(part)], np.nan
    everyone = np.concatenate(filled)
    if len(filled) > 1 and np.unique(everyone).size > 1:
        p = float(scipy.stats.kruskal(*filled).pvalue)
    for site, part in {**parts, "": everyone}.items():
        low, middle, high = np.quantile(part, [0.25, 0.5, 0.75]) if len(part) else (np.nan,) * 3
        row = {"variable": name, "site": site, "patients": len(part), "value": middle, "low": low, "high": high}
        yield row | {"p": p}


def _levels(name: str, values: pd.Series, site_of: pd.Series, confidence: float) -> Iterator[Row]:
    """Count and share of each level at each site and in all; a chi-squared test."""
    counts = pd.crosstab(values, site_of.reindex(values.index).astype(str))
    counts = counts.reindex(columns=list(site_of.cat.categories), fill_value=0)
    if set(values) <= {"yes", "no"} and "yes" not in counts.index:
        counts.loc["yes"] = 0
    p, whole = chi_squared(counts.to_numpy()), counts.assign(**{"": counts.sum(axis=1)})
    totals = whole.sum()
    for level, row in whole.iterrows():
        for site in whole.columns:
            count, total = int(row[site]), int(totals[site])
            share = (count / total, *wilson(count / total, total, confidence)) if total else (np.nan,) * 3
            numbers = dict(zip(("value", "low", "high"), share, strict=True))
            yield {"variable": name, "level": level, "site": site, "patients": total, "count": count, "p": p, **numbers}
