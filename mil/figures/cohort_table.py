"""The cohort by site: patients, labels, slides and clinical columns, with tests between sites."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy

from mil.config import FiguresSpec
from mil.figures.layout import capital
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import column_name
from mil.figures.table import table_picture
from mil.results.results import Absent, Results
from mil.statistics.independence import chi_squared
from mil.tables import by_slide

MAX_LEVELS = 8
MIN_NUMBERS = 7  # fewer distinct numbers are levels (grade), not a measure


@figure("The cohort by site", needs=("bags", "census", "patients"), endpoints=ANY, chapter="cohort", number="F1c, T1")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a characteristic, a column a site; median [quartiles] or count (share)."""
    bags = results.bags(results.endpoint)
    sites = [site for site in results.sites if site in set(bags["site"])]
    rows = [*_fixed_rows(results, bags, sites), *_clinical_rows(results, bags, sites)]
    table = pd.DataFrame(rows, columns=["Characteristic", "Level", *sites, "All", "p"])
    return Drawn(
        figure=table_picture(table),
        data=table,
        is_table=True,
        n=f"{len(bags)} patients at {len(sites)} sites",
        caption=(
            "Patients who are used, by site. Numbers: median [quartiles]; classes: count (share of the patients with a "
            "value). p: difference between the sites, Kruskal-Wallis test for numbers, chi-squared test for classes (by "
            "9,999 permutations where an expected count is below 5); not corrected for the number of rows."
        ),
    )


def _fixed_rows(results: Results, bags: pd.DataFrame, sites: list[str]) -> Iterator[list[str]]:
    census = results.census()
    yield [
        "Role",
        "",
        *("trains" if results.config.slides.roles[site] == "train" else "external" for site in sites),
        "",
        "",
    ]
    yield _counts("Patients", bags["site"], sites)
    labels = bags.set_index("patient_id")["label"]
    yield from _endpoint_rows(results, labels, bags, sites)
    slides = by_slide(bags)[["slide_id", "patient_id", "site"]].merge(
        census[["slide_id", "mpp", "format", "num_tiles"]], on="slide_id"
    )
    yield _counts("Slides", slides["site"], sites)
    tiles = slides.groupby("patient_id")["num_tiles"].sum()
    yield _measure("Tiles a patient", tiles, bags, sites)
    yield ["Microns a pixel", "", *(_spread(slides.loc[slides["site"] == site, "mpp"]) for site in sites), "", ""]
    yield [
        "File format",
        "",
        *(", ".join(sorted(slides.loc[slides["site"] == site, "format"].unique())) for site in sites),
        "",
        "",
    ]


def _endpoint_rows(results: Results, labels: pd.Series, bags: pd.DataFrame, sites: list[str]) -> Iterator[list[str]]:
    """The label as its endpoint has it: positives, classes, events or a number."""
    name, kind = results.endpoint, results.kind
    if kind.scaled:
        yield _measure(column_name(name), labels.astype(float), bags, sites)
    elif not kind.having:
        yield from _levels(column_name(name), labels.astype(str), bags, sites)
    else:
        yield from _levels(
            f"{capital(kind.having)} {name}", labels.astype(int).map({1: "yes", 0: "no"}), bags, sites, only="yes"
        )


def _clinical_rows(results: Results, bags: pd.DataFrame, sites: list[str]) -> Iterator[list[str]]:
    try:
        patients = results.patients().set_index("patient_id")
    except Absent:
        return
    endpoints = {endpoint.column for endpoint in results.config.endpoints.values()}
    for column in patients.columns:
        values = patients.loc[patients.index.intersection(bags["patient_id"]), column]
        values = values[values != ""]
        if column in {*endpoints, "site", "path", "slide_id", "mpp"} or values.empty:
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        name = column_name(str(column))
        if numbers.notna().all() and numbers.nunique() >= MIN_NUMBERS:
            yield _measure(name, numbers, bags, sites)
        elif set(values) <= {"0", "1"}:
            yield from _levels(name, values.map({"1": "yes", "0": "no"}), bags, sites, only="yes")
        elif values.nunique() <= MAX_LEVELS:
            yield from _levels(name, values, bags, sites)


def _counts(name: str, where: pd.Series, sites: list[str]) -> list[str]:
    return [name, "", *(str(int((where == site).sum())) for site in sites), str(len(where)), ""]


def _spread(values: pd.Series) -> str:
    values = values.dropna().astype(float).round(4)
    if values.empty:
        return "–"
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _measure(name: str, values: pd.Series, bags: pd.DataFrame, sites: list[str]) -> list[str]:
    site_of = bags.set_index("patient_id")["site"]
    parts = [values[site_of.reindex(values.index) == site].to_numpy(float) for site in sites]
    filled = [part for part in parts if len(part)]
    p = ""
    if len(filled) > 1 and np.unique(np.concatenate(filled)).size > 1:
        p = p_text(float(scipy.stats.kruskal(*filled).pvalue))
    return [name, "", *(_median(part) for part in parts), _median(np.concatenate(filled)), p]


def _median(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{_short(middle)} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.2g}"
    return text.replace("-", "−")


def _levels(
    name: str, values: pd.Series, bags: pd.DataFrame, sites: list[str], only: str | None = None
) -> Iterator[list[str]]:
    site_of = bags.set_index("patient_id")["site"].reindex(values.index)
    counts = pd.crosstab(values, site_of).reindex(columns=sites, fill_value=0)
    if only is not None and only not in counts.index:
        counts.loc[only] = 0
    p = p_text(chi_squared(counts.to_numpy()))
    totals = counts.sum()
    if only is None:
        yield [name, "", *("" for _ in sites), "", p]
    for level, row in counts.iterrows():
        if only is not None and level != only:
            continue
        cells = [_share(int(row[site]), int(totals[site])) for site in sites]
        everyone = _share(int(row.sum()), int(totals.sum()))
        yield [
            "" if only is None else name,
            str(level) if only is None else "",
            *cells,
            everyone,
            "" if only is None else p,
        ]


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "–"


def p_words(p: float) -> str:
    """`p = 0.03` or `p < 0.001`."""
    if not np.isfinite(p):
        return "p not defined"
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def p_text(p: float) -> str:
    """A p value as tables show it."""
    if not np.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
