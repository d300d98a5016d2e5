"""What a model reaches that knows nothing of the tissue, beside the main model: permuted labels, site, bag size, colour."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import BASELINE_NAMES, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import capital
from mil.figures.registry import Drawn, figure
from mil.figures.style import (
    BASELINE_COLOUR,
    DOUBLE_MM,
    FAINT,
    chance_line,
    dots,
    interval_in_row,
    letters,
    new_figure,
    row_axis,
    strategy_colour,
    strategy_name,
)
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE, TRAINING_SITES

CONTROLS = ("site", "bag_size", "colour")


@figure("Null controls", needs=("metrics", "baselines"), chapter="doubts", number="ED10")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Rows of controls with intervals, and the spread of models that were taught permuted labels."""
    null = results.about_features(results.endpoint, "permutations").dropna(
        subset="value"
    )  # a site of one class has none
    groups = [group for group in (TRAINING_SITES, EXTERNAL_SITES) if (null["site"] == group).any()]
    if not groups:
        raise Absent("no group of sites has both classes and models that were taught permuted labels")
    table = _rows(results)
    picture = new_figure(DOUBLE_MM, 24 + 7 * (len(table["model"].unique()) + 1))
    panels = picture.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    names = ["Permuted labels", *table["model"].unique()]
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, results, table[table["site"] == group], null[null["site"] == group])
        axes.set_title(capital(group))
    panels[0].set_yticks(range(len(names)), names)
    if len(panels) > 1:
        letters(panels)
    lowest = min(axes.get_xlim()[0] for axes in panels)
    for axes in panels:
        axes.set_xlim(lowest, 1.02)
    data = pd.concat([table, null.assign(model="Permuted labels")], ignore_index=True)
    main = results.experiments[results.main]
    values = {group: _value(table, group, strategy_name(main.strategy.name)) for group in groups}
    said = "; ".join(
        f"{group}: {(null.loc[null['site'] == group, 'value'] >= value).mean():.1%}"
        if np.isfinite(value)
        else f"{group}: not known, as the main model has no AUROC there"
        for group, value in values.items()
    )
    return Drawn(
        figure=picture,
        data=data,
        n=f"{results.config.metrics.permutations} permutations",
        caption=(
            "AUROC within sites (at training sites also within folds) of models that were given the hospital, the "
            f"number of tiles or the colour alone, of {strategy_name(main.strategy.name)} ({input_name(main)}), "
            f"{with_intervals(table, results.config.metrics.confidence)}, and of ridge regressions on the mean of "
            f"its features that were taught labels permuted within each site (grey dots; bar: the middle {results.config.metrics.confidence:.0%}). Share of "
            f"permutations that reach the main model's AUROC: {said}."
        ),
    )


def _rows(results: Results) -> pd.DataFrame:
    """model, site, value, low, high of the controls and of the main experiment."""
    parts, baselines = [], results.baseline_metrics(results.endpoint)
    for kind in CONTROLS:
        part = baselines[baselines["experiment"] == f"{kind}_pooled"]
        if len(part):
            parts.append(_of(part, BASELINE_NAMES[kind]))
    main = results.experiments[results.main]
    metrics = results.metrics(results.main)
    if main.strategy.by_site:
        metrics = metrics[metrics["trained_on"].isin([OWN_SITE, ENSEMBLE])]
    parts.append(_of(metrics, strategy_name(main.strategy.name)))
    return pd.concat(parts, ignore_index=True)


def _of(metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    table = primary(metrics)
    table = table[table["site"].isin([TRAINING_SITES, EXTERNAL_SITES])]
    return table[["site", "value", "low", "high", "method"]].assign(model=name).drop_duplicates(["model", "site"])


def _value(table: pd.DataFrame, group: str, name: str) -> float:
    values = table[(table["site"] == group) & (table["model"] == name)]["value"]
    return float(values.iloc[0]) if len(values) else np.nan


def _panel(axes: Axes, results: Results, table: pd.DataFrame, null: pd.DataFrame) -> None:
    main = results.experiments[results.main]
    chance_line(axes, vertical=True)
    if len(null):
        values = np.sort(null["value"].to_numpy())
        spread = 0.3 * np.sin(np.arange(len(values)) * 2.4)  # the golden angle keeps neighbours apart
        dots(axes, values, spread, FAINT, 0.8, markersize=2)
        tail = (1 - results.config.metrics.confidence) / 2
        low, middle, high = np.quantile(values, [tail, 0.5, 1 - tail])
        axes.plot([low, high], [0, 0], color=BASELINE_COLOUR, linewidth=1.6)
        axes.plot(middle, 0, "o", color=BASELINE_COLOUR, markersize=4)
    for height, row in enumerate(table.itertuples(), 1):
        colour = strategy_colour(main.strategy.name) if height == len(table) else BASELINE_COLOUR
        interval_in_row(axes, height, row, colour)
    lowest = float(np.nanmin([0.1, *table["low"], *null["value"]]))
    axes.set(xlim=(lowest - 0.03, 1.02), ylim=(len(table) + 0.6, -0.6), xlabel="AUROC", xticks=[0.25, 0.5, 0.75, 1])
    row_axis(axes)
