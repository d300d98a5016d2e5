"""AUROC of the main model in subgroups of patients, as a forest plot."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Transform

from mil.config import FiguresSpec
from mil.figures.arms import input_name, main_at
from mil.figures.cohort_table import p_text
from mil.figures.layout import fitted
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import HAIR, INK, SOFT, chance_line, column_name, new_figure, strategy_colour, strategy_name
from mil.metrics.subgroups import subgroup_aurocs

ROW_MM = 4.8
AREAS = {"width_ratios": (1.0, 1.15)}


@figure("Subgroups", needs=("predictions", "bags", "patients"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a level with patients, positives and AUROC in numbers; p that a variable's AUROCs differ."""
    columns = results.config.metrics.subgroups
    if not columns:
        raise Absent("no subgroup is named (metrics.subgroups in the cohort file)")
    scores = pd.concat([main_at(results, site).table for site in results.sites], ignore_index=True)
    table = subgroup_aurocs(scores, results.patients(), columns, results.config.metrics.confidence)
    lines = _lines(table)
    picture = new_figure(150, 14 + ROW_MM * len(lines))
    words, axes = picture.subplots(1, 2, sharey=True, gridspec_kw=AREAS)
    colour = strategy_colour(results.experiments[results.main].strategy.name)
    chance_line(axes, vertical=True)
    words.axis("off")
    for x, head in ((0.02, ""), (0.62, "n (positive)"), (1.0, "AUROC")):
        words.text(
            x,
            -1,
            head,
            ha="left" if x < 0.1 else "right",
            va="center",
            fontsize=6.5,
            fontweight=700,
            transform=_mixed(words),
        )
    for place, (kind, text, row) in enumerate(lines):
        bold = kind != "level"
        words.text(
            0.02 + 0.05 * (kind == "level"),
            place,
            fitted(text, 21 if kind == "level" else 60, 6.8, bold=bold)[0],
            va="center",
            fontsize=6.8,
            fontweight=700 if bold else 400,
            transform=_mixed(words),
        )
        if row is None:
            axes.axhline(place - 0.5, color=HAIR, linewidth=0.5)
            continue
        words.text(
            0.62,
            place,
            f"{row.patients} ({row.positives})",
            ha="right",
            va="center",
            fontsize=6.5,
            transform=_mixed(words),
        )
        defined = np.isfinite(row.auroc)
        number = f"{row.auroc:.2f} [{row.low:.2f}, {row.high:.2f}]" if defined else "too few"
        words.text(
            1.0,
            place,
            number,
            ha="right",
            va="center",
            fontsize=6.5,
            color=INK if defined else SOFT,
            transform=_mixed(words),
        )
        if defined:
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.3)
            axes.plot(row.auroc, place, "D" if kind == "all" else "o", color=colour, markersize=4.5)
    axes.set(
        xlim=(float(np.nanmin([0.2, *table["low"]])) - 0.02, 1.02),
        ylim=(len(lines) - 0.4, -1.6),
        xlabel="AUROC",
        xticks=[0.25, 0.5, 0.75, 1],
    )
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=table,
        n=f"{len(scores)} patients of all sites",
        caption=(
            f"AUROC of {strategy_name(main.strategy.name)}, {input_name(main)}, for {main.endpoint} in subgroups of all patients "
            f"(training sites: held out), with {results.config.metrics.confidence:.0%} intervals (DeLong, logit scale). Numbers are cut at their median. p: "
            "chi-squared test that the AUROCs of a variable are equal, not corrected; subgroups overlap and were not powered for."
        ),
    )


def _lines(table: pd.DataFrame) -> list[tuple[str, str, Any]]:
    """(kind, text, row): the whole cohort, then each variable's head and its levels."""
    lines: list[tuple[str, str, Any]] = [("all", "All patients", next(table.head(1).itertuples()))]
    for variable, part in table.iloc[1:].groupby("variable", sort=False):
        p = float(part["p_differs"].iloc[0])
        said = "" if not np.isfinite(p) else f", p {p_text(p)}" if p < 0.001 else f", p = {p_text(p)}"
        lines.append(("variable", f"{column_name(str(variable))}{said}", None))
        lines += [("level", str(row.level), row) for row in part.itertuples()]
    return lines


def _mixed(axes: Axes) -> Transform:
    return axes.get_yaxis_transform()
