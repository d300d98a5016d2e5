"""Every model and baseline in cross-validation at its own site: a box over folds, a column of boxes a site."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import baseline_arm, input_name
from mil.figures.layout import capital, name_rows, title_of_site
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    INK,
    chance_line,
    dots,
    letters,
    light_grid,
    new_figure,
    row_axis,
    strategy_colour,
)
from mil.results.results import Absent, Results
from mil.rng import rng

FEWEST_OF_A_BOX = 20
"""Of fewer folds the points stand alone: quartiles of a handful of values say nothing."""
LOCAL_BASELINES = ("clinical", "annotation", "mean_features", "fusion")


@figure(
    "Local training: models and baselines by site",
    needs=("predictions", "bags", "baselines", "metrics"),
    endpoints=ANY,
    chapter="local",
    number="F2b",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """AUROC on held-out folds of models trained on the site alone."""
    measure = results.kind.primary
    tables = {**_models(results), **_baselines(results)}
    tables = {name: (table, colour) for name, (table, colour) in tables.items() if len(table)}
    if not tables:
        raise Absent("no experiment or baseline trains a model a site (strategy local)")
    sites = [site for site in results.training_sites if any(site in set(table["site"]) for table, _ in tables.values())]
    across = min(len(sites), 4)
    down = -(-len(sites) // across)
    picture = new_figure(DOUBLE_MM, (22 + 6.2 * len(tables)) * down)
    grid = picture.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes in grid[len(sites) :]:
        axes.axis("off")
    panels = grid[: len(sites)]
    for axes, site in zip(panels, sites, strict=True):
        light_grid(axes, "x")
        chance_line(axes, vertical=True, at=measure.chance)
        for height, (name, (table, colour)) in enumerate(tables.items()):
            _box(axes, height, table.loc[table["site"] == site, measure.name].to_numpy(), colour, f"{site} {name}")
        title_of_site(axes, site, f"n = {_patients(results, site)}", (DOUBLE_MM - 40) / across - 3)
        low = 2 * (measure.chance or 0.0) - 1
        axes.set(xlim=(low - 0.02, 1.03), xlabel=f"{measure.title} of a held-out fold")
        axes.set_xticks([low, (low + 1) / 2, 1])
        axes.set_xticks([(3 * low + 1) / 4, (low + 3) / 4], minor=True)
        row_axis(axes)
    name_rows(panels[0], list(tables))
    panels[0].set_ylim(len(tables) - 0.4, -0.6)
    if len(panels) > 1:
        letters(panels, up=12)
    data = pd.concat([table.assign(model=name) for name, (table, _) in tables.items()], ignore_index=True)
    return Drawn(
        figure=picture,
        data=data,
        n=", ".join(f"{site} {_patients(results, site)}" for site in sites),
        caption=(
            f"{measure.title} for {results.endpoint} on held-out folds of models that were trained on the site's own patients alone: "
            f"dots are folds of all repeats, diamonds their means; boxes (of {FEWEST_OF_A_BOX} folds or more) medians and quartiles. Folds overlap in "
            "training, so their spread says how folds vary, not how sure the mean is; intervals are in the tables."
        ),
    )


def _models(results: Results) -> dict[str, tuple[pd.DataFrame, str]]:
    tables = {}
    for name, experiment in results.experiments.items():
        if experiment.strategy.by_site and experiment.endpoint == results.endpoint:
            try:
                table = results.folds(name)
            except Absent:
                continue
            tables[capital(input_name(experiment))] = (_of_own_site(table), strategy_colour("local"))
    return tables


def _baselines(results: Results) -> dict[str, tuple[pd.DataFrame, str]]:
    try:
        table = results.about_features(results.endpoint, "folds")
    except Absent:
        return {}
    tables = {}
    for kind in LOCAL_BASELINES:
        part = table[table["experiment"] == f"{kind}_local"]
        if len(part):
            look = baseline_arm(results, f"{kind}_local")
            part = part.drop(columns="experiment").rename(columns={"value": results.kind.primary.name})
            tables[look.name] = (_of_own_site(part), look.colour)
    return tables


def _of_own_site(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["split"] == "held_out") & (table["trained_on"] == table["site"])]


def _box(axes: Axes, height: int, values: np.ndarray, colour: str, name: str) -> None:
    if not len(values):
        return
    if len(values) >= FEWEST_OF_A_BOX:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.barh(height, high - low, left=low, height=0.5, color=colour, alpha=0.22, edgecolor=colour, linewidth=0.8)
        axes.vlines(middle, height - 0.25, height + 0.25, color=colour, linewidth=1.6)
    jitter = rng(0, "jitter", name).uniform(-0.16, 0.16, len(values))
    dots(axes, values, height + jitter, colour, markersize=2.2)
    axes.plot(values.mean(), height, "D", color=INK, markersize=2.8)


def _patients(results: Results, site: str) -> int:
    return int((results.bags(results.endpoint)["site"] == site).sum())
