"""Trained here, tested there: AUROC of every site's own model at every site."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import UPRIGHT_MM, fitted, name_rows, name_sites
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, ENSEMBLE_NAME, INK, SOFT, centred, ink_on, new_figure, strategy_name, unframed
from mil.results.results import Absent, Results
from mil.statistics.arms import OWN_SITE

CMAP = "Blues"
CELL_MM, SMALL_MM = 24.0, 15.0  # narrower cells hold the value only, the interval is in the CSV


@figure("Trained on one site, tested on another", needs=("metrics",), endpoints=ANY, chapter="local", number="F2c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row an arm (each site's own model first), a column a site; the frame marks held-out patients of the own site."""
    family = results.family()
    metrics = results.metrics(*family)
    kind = results.kind
    metrics = metrics[metrics["metric"] == kind.primary.name]
    metrics = metrics[metrics["site"].isin(results.sites) & (metrics["trained_on"] != OWN_SITE)].dropna(
        subset=["value"]
    )
    local = [name for name, experiment in family.items() if experiment.strategy.by_site]
    if not local:
        raise Absent("no experiment of this family trains a model a site (strategy local)")
    rows = [(name, on) for name in family for on in metrics.loc[metrics["experiment"] == name, "trained_on"].unique()]
    if not rows:
        raise Absent(f"no {kind.primary.title} is defined at any site")
    rows.sort(key=lambda row: (row[0] not in local, row[1] not in results.sites))
    table = metrics.set_index(["experiment", "trained_on", "site"])
    sites = [*results.training_sites, *results.external_sites]  # where a patient has a label
    columns = len(sites)
    wide = min(CELL_MM, (DOUBLE_MM - 58) / columns)
    small = wide < SMALL_MM
    lowest = min(kind.primary.chance or 0.0, float(metrics["value"].min()))  # the palest colour
    absent = "patients of one class only" if kind.two_classes else f"no {kind.primary.title} is defined there"
    names = [_row_name(results, *row) for row in rows]
    picture = new_figure(58 + wide * columns, 24 + (UPRIGHT_MM - 8) * small + (6 if small else 11) * len(rows))
    axes = picture.subplots()
    grid = np.full((len(rows), columns), np.nan)
    for i, key in enumerate(rows):
        for j, site in enumerate(sites):
            if (*key, site) in table.index:
                row = table.loc[(*key, site)]
                grid[i, j] = row["value"]
                _write_cell(axes, (j, i), row, lowest, wide)
            else:
                centred(axes, j, i, "–", fontsize=6.3, color=SOFT)
    image = axes.imshow(grid, cmap=CMAP, vmin=lowest, vmax=1, aspect="auto")
    roles = ["trains" if site in results.training_sites else "external" for site in sites]
    name_sites(axes, sites, roles, room_mm=wide * columns)
    name_rows(axes, names, 34)
    unframed(axes)
    axes.tick_params(labeltop=True, labelbottom=False)
    axes.set_ylabel("Trained on")
    bar = picture.colorbar(image, ax=axes, fraction=0.035, pad=0.02)
    bar.set_label(kind.primary.title)
    bar.outline.set_visible(False)  # type: ignore[operator]
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=metrics.reset_index(drop=True),
        n=", ".join(f"{site} {int(part['patients'].max())}" for site, part in metrics.groupby("site")),
        caption=(
            f"{kind.primary.title} of {input_name(main)} for {main.endpoint} by where the model was trained and where it is tested, "
            f"{with_intervals(metrics, results.config.metrics.confidence)}. Framed: held-out patients of sites that trained; "
            f"the other cells are sites that the model never saw; – : {absent}, or no score.{' Intervals are in the values.' if small else ''}"
        ),
    )


def _write_cell(axes: Axes, at: tuple[int, int], row: pd.Series, lowest: float, wide: float) -> None:
    """Value and interval of `row` at column and row `at`, framed where its patients are held out; the cell is `wide` mm."""
    ink = ink_on(CMAP, (row["value"] - lowest) / (1 - lowest))
    with_bounds = wide >= SMALL_MM and np.isfinite(row["low"])
    text = f"{row['value']:z.2f}" + (f"\n[{row['low']:z.2f}, {row['high']:z.2f}]" if with_bounds else "")
    size = fitted(text.split("\n")[-1], wide - 1, 6.3)[1]
    centred(axes, *at, text, fontsize=size, color=ink, linespacing=1.3)
    if row["split"] == "held_out":
        column, number = at
        frame = Rectangle((column - 0.48, number - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=0.9)
        axes.add_patch(frame)


def _row_name(results: Results, experiment: str, trained_on: str) -> str:
    strategy = results.experiments[experiment].strategy
    if strategy.by_site:
        return f"{trained_on}" if trained_on in results.sites else ENSEMBLE_NAME
    everywhere = "all training sites" if trained_on.count("+") > 1 else trained_on.replace("+", " + ")
    return f"{everywhere}\n{strategy_name(strategy.name)}"
