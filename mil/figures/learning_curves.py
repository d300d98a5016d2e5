"""Loss and AUROC on the inner folds, round by round and site by site: a column a strategy."""

from contextlib import suppress

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.layout import capital, legend_of_figure
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    INK,
    MIDDLE_MM,
    SOFT,
    chance_line,
    letters,
    new_figure,
    site_colour,
    strategy_name,
)
from mil.results.results import Absent, Results

TRAIN_LINE = (0, (1.5, 1.2))
LONG, NEW_LINE = 10, "\n"  # a label of so many letters takes two lines
METRICS = ("val_loss", "val_auroc")
MOST_BANDS = 4
"""Sites in a panel up to which each has its band; more would cover each other."""


@figure("Learning curves by round", needs=("rounds",), endpoints=ANY, chapter="training", number="ED1")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Mean over folds with the middle 80 % of models; dotted: the training loss; ticks: the rounds that were chosen."""
    tables = {}
    for name in results.family():
        with suppress(Absent):
            tables[name] = _curves(results, name)
    if not tables:
        raise Absent("no run of this family has a table of rounds")
    picture = new_figure(DOUBLE_MM if len(tables) > 2 else MIDDLE_MM, 80 + 1.5 * len(results.training_sites))
    panels = picture.subplots(2, len(tables), squeeze=False, sharex="col", sharey="row")
    for column, (name, table) in enumerate(tables.items()):
        for row, (metric, label) in enumerate(zip(METRICS, ("Loss", results.kind.watched), strict=True)):
            _panel(panels[row, column], results, table, metric)
            if column == 0:
                panels[row, 0].set_ylabel(f"{capital(label)},{' ' if len(label) < LONG else NEW_LINE}inner folds")
        panels[0, column].set_title(strategy_name(results.experiments[name].strategy.name))
        _mark_chosen(panels[1, column], results, name)
        for axes in panels[:, column]:
            axes.spines["left"].set_visible(column == 0)
            axes.tick_params(axis="y", left=column == 0)
        panels[1, column].set_xlabel("Round")
        panels[1, column].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        chance_line(panels[1, column])  # of every kind the share of pairs in order
    sites = [site for site in results.training_sites if any(site in set(table["site"]) for table in tables.values())]
    handles = [Line2D([], [], color=site_colour(site, results.sites), label=site) for site in sites]
    if any(set(table["site"]) - set(results.sites) for table in tables.values()):
        handles.append(Line2D([], [], color=INK, label="all sites"))
    handles += [
        Line2D([], [], color=SOFT, linestyle=TRAIN_LINE, label="training loss"),
    ]
    letters(panels.ravel())
    legend_of_figure(picture, handles, [str(handle.get_label()) for handle in handles])
    chosen = [chosen_rounds(results, name).assign(experiment=name, kind="rounds chosen") for name in tables]
    curves = [table.assign(experiment=name, kind="curve") for name, table in tables.items()]
    data = pd.concat([part for part in [*curves, *chosen] if len(part)], ignore_index=True)
    main = results.experiments[results.main]
    models = {name: results.rounds(name).loc[lambda t: t["phase"] == "inner", "model"].nunique() for name in tables}
    return Drawn(
        figure=picture,
        data=data,
        n=", ".join(
            f"{strategy_name(results.experiments[name].strategy.name)}: {n} models" for name, n in models.items()
        ),
        caption=(
            f"Loss and {results.kind.watched} of {input_name(main)} on the inner folds, which the models of the selection phase did not "
            "train on, by round and site. Lines: mean over repeats, folds and inner folds; bands: the middle 80 % of "
            f"models{f', of all sites together where there are more than {MOST_BANDS}' if len(sites) > MOST_BANDS else ''}. Ticks at the bottom: the number of rounds chosen for each outer fold, where the {results.kind.error} on the inner folds is smallest."
        ),
    )


def _curves(results: Results, name: str) -> pd.DataFrame:
    """Mean and the 10 % and 90 % quantiles over models: site, round, metric, mean, low, high."""
    rounds = results.rounds(name)
    rounds = rounds[rounds["phase"] == "inner"]
    long = rounds.melt(["site", "round"], ["train_loss", "val_loss", "val_auroc"], "metric").dropna(subset=["value"])
    grouped = long.groupby(["site", "metric", "round"])["value"]
    return grouped.agg(
        mean="mean", low=lambda v: float(np.quantile(v, 0.1)), high=lambda v: float(np.quantile(v, 0.9))
    ).reset_index()


def _panel(axes: Axes, results: Results, table: pd.DataFrame, metric: str) -> None:
    several = any("+" in site for site in table["site"])
    for site, part in table.groupby("site"):
        together = site not in results.sites
        colour = INK if together else site_colour(str(site), results.sites)
        curve = part[part["metric"] == metric]
        axes.plot(curve["round"], curve["mean"], color=colour, linewidth=1.6 if together else 1.1)
        if together or table["site"].nunique() - several <= MOST_BANDS:
            axes.fill_between(curve["round"], curve["low"], curve["high"], color=colour, alpha=0.12, linewidth=0)
        if metric == "val_loss" and (together or not several):
            train = part[part["metric"] == "train_loss"]
            axes.plot(train["round"], train["mean"], color=colour, linewidth=0.9, linestyle=TRAIN_LINE)


def chosen_rounds(results: Results, name: str) -> pd.DataFrame:
    """Each fold's model with the rounds that were chosen for it; no row where the run kept no list of models."""
    try:
        return results.models(name)[["trained_on", "repeat", "fold", "rounds"]]
    except Absent:
        return pd.DataFrame(columns=["trained_on", "repeat", "fold", "rounds"])


def _mark_chosen(axes: Axes, results: Results, name: str) -> None:
    models = chosen_rounds(results, name)
    stream = np.linspace(-0.25, 0.25, len(models)) if len(models) > 1 else np.zeros(1)
    for offset, row in zip(stream, models.sort_values("rounds").itertuples(), strict=True):
        site = str(row.trained_on)
        colour = site_colour(site, results.sites) if site in results.sites else INK
        axes.axvline(row.rounds + offset, ymax=0.06, color=colour, linewidth=0.7)
