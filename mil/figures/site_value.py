"""What another hospital is worth: AUROC at external sites of models trained on every set of training sites."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import arm, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import fitted
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, INK, MIDDLE_MM, chance_line, dots, light_grid, new_figure
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.rng import rng
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE
from mil.tables import stacked

MOST_SETS = 7  # more sets of sites than these are drawn by their number of sites


@figure("The value of adding a site", needs=("bags", "baselines", "metrics"), chapter="performance", number="ED5")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A mark a set of training sites: a quick model on mean features, and the main family's own models beside it."""
    training = results.training_sites
    if len(training) < 2 or not results.external_sites:
        raise Absent("it takes two training sites and an external one with labels")
    quick = results.about_features(results.endpoint, "site_value").assign(
        model="Ridge of fixed strength on mean features", colour=INK
    )
    trained = _main(results)
    table = stacked([quick, trained])
    names = list(dict.fromkeys(table.sort_values(["sites", "trained_on"])["trained_on"]))
    one_by_one = len(names) <= MOST_SETS
    picture = new_figure(min(DOUBLE_MM, 50 + 22 * len(names)) if one_by_one else MIDDLE_MM, 72)
    axes = picture.subplots()
    light_grid(axes)
    chance_line(axes)
    if one_by_one:
        _each_set(axes, results, table, names, min(DOUBLE_MM, 50 + 22 * len(names)) - 42)
    else:
        _by_number(axes, table)
    low = float(table[["low", "value"] if one_by_one else ["value"]].min().min())
    axes.set(ylim=(min(0.4, low - 0.02), 1.02), ylabel="AUROC within external sites")
    picture.legend(loc="outside right upper")
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=table.drop(columns="colour"),
        n=f"{int(results.bags(results.endpoint)['role'].eq('external').sum())} external patients",
        caption=(
            f"AUROC for {main.endpoint} within external sites of models that were trained on each set of training sites: a logistic ridge regression of fixed strength on the mean of the "
            f"features{f', and {input_name(main)} as trained in this run' if len(trained) else ''}, {with_intervals(table, results.config.metrics.confidence)}. "
            f"{'' if one_by_one else 'A mark is a set of sites, the line the mean of the quick model over sets of the same number; single intervals are in the values. '}"
            "More sites also means more patients."
        ),
    )


def _each_set(axes: Axes, results: Results, table: pd.DataFrame, names: list[str], room_mm: float) -> None:
    """A place on the x axis for every set of sites, with intervals."""
    kinds = list(dict.fromkeys(table["model"]))
    for number, kind in enumerate(kinds):
        mine = table[table["model"] == kind]
        offset = (number - (len(kinds) - 1) / 2) * 0.16
        places = np.array([names.index(name) for name in mine["trained_on"]]) + offset
        colour = mine["colour"].iloc[0]
        axes.vlines(places, mine["low"], mine["high"], color=colour, linewidth=1.3)
        axes.plot(places, mine["value"], "o" if number else "s", color=colour, markersize=4.2, label=kind)
    counts = results.bags(results.endpoint)["site"].value_counts()
    step = room_mm / len(names) - 1
    labels = []
    for name in names:
        sites = name.split("+")
        lines = [fitted(f"{site} +" if site != sites[-1] else site, step, 6.5)[0] for site in sites]
        labels.append("\n".join([*lines, f"n = {sum(int(counts.get(site, 0)) for site in sites)}"]))
    axes.set_xticks(range(len(names)), labels)
    axes.set(xlim=(-0.6, len(names) - 0.4), xlabel="Trained on")


def _by_number(axes: Axes, table: pd.DataFrame) -> None:
    """Every set of sites at its number of sites; the quick model's mean as a line."""
    for order, kind in enumerate(dict.fromkeys(table["model"])):
        mine = table[table["model"] == kind]
        colour = mine["colour"].iloc[0]
        jitter = rng(0, "jitter", kind).uniform(-0.12, 0.12, len(mine))
        look = {"marker": "o" if order else "s", "markersize": 3.4, "label": kind, "zorder": 2 + order}
        dots(axes, mine["sites"] + jitter, mine["value"], colour, **look)
        mean = mine.groupby("sites")["value"].mean()
        if order == 0:
            axes.plot(mean.index, mean, color=colour, linewidth=1.2)
    axes.set(xlabel="Number of training sites", xticks=sorted(table["sites"].unique()))


def _main(results: Results) -> pd.DataFrame:
    metrics = primary(results.metrics(*results.family()))
    metrics = metrics[(metrics["site"] == EXTERNAL_SITES) & ~metrics["trained_on"].isin([OWN_SITE, ENSEMBLE])]
    rows = []
    for row in metrics.itertuples():
        row_arm = arm(results, str(row.experiment), str(row.trained_on))
        name = row_arm.name.split(",")[0]
        rows.append(
            (
                row.trained_on,
                str(row.trained_on).count("+") + 1,
                name,
                row_arm.colour,
                row.value,
                row.low,
                row.high,
                row.method,
            )
        )
    return pd.DataFrame(rows, columns=["trained_on", "sites", "model", "colour", "value", "low", "high", "method"])
