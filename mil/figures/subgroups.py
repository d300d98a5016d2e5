"""AUROC of the main model in subgroups of patients, as a forest plot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.cohort_table import p_text
from mil.figures.how_made import with_intervals
from mil.figures.layout import fitted, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import HAIR, INK, SOFT, chance_line, column_name, new_figure, strategy_colour, strategy_name
from mil.results.results import Absent, Results

ROW_MM = 4.8
AREAS = {"width_ratios": (1.0, 1.15)}
COUNTS, VALUES = 0.62, 1.0
"""Where the columns of numbers end, in shares of the axes."""
Line = tuple[str, str, Any]
"""Kind (all, variable, level), text, and the table's row; a variable has none."""


@figure("Subgroups", needs=("comparisons",), chapter="use", number="ED7")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a level with patients, positives and AUROC in numbers; p that a variable's AUROCs differ."""
    if not results.config.metrics.subgroups:
        raise Absent("no subgroup is named (metrics.subgroups in the cohort file)")
    table = results.clinical("subgroups")
    table = table[table["experiment"] == results.main].drop(columns="experiment")
    if table.empty:
        raise Absent(f"{results.main} judges no patient who is held out or at an external site")
    lines = _lines(table)
    picture = new_figure(150, 14 + ROW_MM * len(lines))
    words, axes = picture.subplots(1, 2, sharey=True, gridspec_kw=AREAS)
    _write(words, lines)
    chance_line(axes, vertical=True)
    _mark(axes, lines, strategy_colour(results.experiments[results.main].strategy.name))
    axes.set(
        xlim=(float(np.nanmin([0.2, *table["low"]])) - 0.02, 1.02),
        ylim=(len(lines) - 0.4, -1.6),
        xlabel="AUROC",
        xticks=[0.25, 0.5, 0.75, 1],
    )
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    main = results.experiments[results.main]
    intervals = with_intervals(table.rename(columns={"auroc": "value"}), results.config.metrics.confidence)
    return Drawn(
        figure=picture,
        data=table,
        n=f"{table['patients'].iloc[0]} patients of all sites",
        caption=(
            f"AUROC of {strategy_name(main.strategy.name)}, {input_name(main)}, for {main.endpoint} in subgroups of all patients "
            f"(training sites: held out), over pairs of patients of one site, {intervals}. Numbers are cut at their median. p: "
            "chi-squared test that the AUROCs of a variable are equal, not corrected; subgroups overlap and were not powered for."
        ),
    )


def _write(axes: Axes, lines: Sequence[Line]) -> None:
    """Names, patients and AUROCs in three columns; a row a line."""
    axes.axis("off")
    transform = axes.get_yaxis_transform()  # across in shares of the axes, down in lines
    cell = {"ha": "right", "va": "center", "fontsize": 6.5, "transform": transform}
    axes.text(COUNTS, -1, "n (positive)", fontweight=700, **cell)
    axes.text(VALUES, -1, "AUROC", fontweight=700, **cell)
    for number, (kind, text, row) in enumerate(lines):
        level, bold = kind == "level", kind != "level"
        fitting = fitted(text, 21 if level else 60, 6.8, bold=bold)[0]
        weight = 700 if bold else 400
        axes.text(
            0.07 if level else 0.02, number, fitting, va="center", fontsize=6.8, fontweight=weight, transform=transform
        )
        if row is None:
            continue
        axes.text(COUNTS, number, f"{row.patients} ({row.positives})", **cell)
        defined = np.isfinite(row.auroc)
        said = with_interval(row.auroc, row.low, row.high) if defined else "too few"
        axes.text(VALUES, number, said, color=INK if defined else SOFT, **cell)


def _mark(axes: Axes, lines: Sequence[Line], colour: str) -> None:
    """AUROC and interval of every level, a hair above each variable."""
    for number, (kind, _, row) in enumerate(lines):
        if row is None:
            axes.axhline(number - 0.5, color=HAIR, linewidth=0.5)
        elif np.isfinite(row.auroc):
            axes.plot([row.low, row.high], [number, number], color=colour, linewidth=1.3)
            axes.plot(row.auroc, number, "D" if kind == "all" else "o", color=colour, markersize=4.5)


def _lines(table: pd.DataFrame) -> list[Line]:
    """(kind, text, row): the whole cohort, then each variable's head and its levels."""
    lines: list[Line] = [("all", "All patients", next(table.head(1).itertuples()))]
    for variable, part in table.iloc[1:].groupby("variable", sort=False):
        p = float(part["p_differs"].iloc[0])
        said = "" if not np.isfinite(p) else f", p {p_text(p)}" if p < 0.001 else f", p = {p_text(p)}"
        lines.append(("variable", f"{column_name(str(variable))}{said}", None))
        lines += [("level", str(row.level), row) for row in part.itertuples()]
    return lines
