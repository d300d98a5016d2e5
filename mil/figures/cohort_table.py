"""The cohort by site: patients, labels, slides and clinical columns, with tests between sites."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.layout import capital
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import column_name
from mil.figures.table import table_picture
from mil.metrics.cohort import MAX_LEVELS, TILES, without_rows
from mil.results.results import Results
from mil.tables import by_slide


@figure(
    "The cohort by site", needs=("bags", "census", "comparisons"), endpoints=ANY, chapter="cohort", number="F1c, T1"
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a characteristic, a column a site; median [quartiles] or count (share)."""
    bags = results.bags(results.endpoint)
    sites = [site for site in results.sites if site in set(bags["site"])]
    rows = [*_fixed_rows(results, bags, sites), *_clinical_rows(results, sites)]
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
            + _without_rows(results)
        ),
    )


def _without_rows(results: Results) -> str:
    names = ", ".join(column_name(name) for name in without_rows(results))
    return f" Columns of more than {MAX_LEVELS} different texts have no row: {names}." if names else ""


def _fixed_rows(results: Results, bags: pd.DataFrame, sites: list[str]) -> Iterator[list[str]]:
    census, table = results.census(), results.cohort()
    roles = ("trains" if results.config.slides.roles[site] == "train" else "external" for site in sites)
    yield ["Role", "", *roles, "", ""]
    yield _counts("Patients", bags["site"], sites)
    name, kind = results.endpoint, results.kind
    title = f"{capital(kind.having)} {name}" if kind.having else column_name(name)
    yield from _rows(title, table[table["variable"] == name], sites)
    slides = by_slide(bags)[["slide_id", "patient_id", "site"]].merge(
        census[["slide_id", "mpp", "format", "num_tiles"]], on="slide_id"
    )
    yield _counts("Slides", slides["site"], sites)
    yield from _rows("Tiles a patient", table[table["variable"] == TILES], sites)
    yield ["Microns a pixel", "", *(_spread(slides.loc[slides["site"] == site, "mpp"]) for site in sites), "", ""]
    formats = (", ".join(sorted(slides.loc[slides["site"] == site, "format"].unique())) for site in sites)
    yield ["File format", "", *formats, "", ""]


def _clinical_rows(results: Results, sites: list[str]) -> Iterator[list[str]]:
    table = results.cohort()
    for column, part in table[~table["variable"].isin([results.endpoint, TILES])].groupby("variable", sort=False):
        yield from _rows(column_name(str(column)), part, sites)


def _counts(name: str, where: pd.Series, sites: list[str]) -> list[str]:
    return [name, "", *(str(int((where == site).sum())) for site in sites), str(len(where)), ""]


def _spread(values: pd.Series) -> str:
    values = values.dropna().astype(float).round(4)
    if values.empty:
        return "–"
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _rows(name: str, part: pd.DataFrame, sites: list[str]) -> Iterator[list[str]]:
    """A measure in one row; of levels one row each, under the name; of yes and no one row."""
    by_place, p = part.set_index(["level", "site"]), float(part["p"].iloc[0])
    levels = list(dict.fromkeys(part["level"]))
    if levels == [""]:
        cells = [_median(by_place.loc[("", site)]) for site in [*sites, ""]]
        yield [name, "", *cells, p_text(p) if np.isfinite(p) else ""]
        return
    only = "yes" if set(levels) <= {"yes", "no"} else None
    if only is None:
        yield [name, "", *("" for _ in sites), "", p_text(p)]
    for level in [only] if only else levels:
        cells = [_share(by_place.loc[(level, site)]) for site in [*sites, ""]]
        yield [name, "", *cells, p_text(p)] if only else ["", str(level), *cells, ""]


def _median(row: pd.Series) -> str:
    if not row["patients"]:
        return "–"
    return f"{_short(row['value'])} [{_short(row['low'])}, {_short(row['high'])}]"


def _share(row: pd.Series) -> str:
    return f"{int(row['count'])} ({row['value']:.0%})" if row["patients"] else "–"


def _short(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.2g}"
    return text.replace("-", "−")


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
