"""Hazard ratios or odds ratios of a model with several variables, as a forest plot; the score stands out in its strategy's colour."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.figures.style import SOFT, column_name, interval_in_row
from mil.metrics.clinical import ADDED

REACH = 100  # ratios beyond are cut off


def model_rows(associations: pd.DataFrame, analysis: str, called: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Of `associations` (by analysis): a model's ratios, the test of the score in it, and the sentence why there is none."""
    ratios = associations.loc[associations.index == analysis]
    added = associations.loc[associations.index == analysis + ADDED]
    if added.empty and len(ratios):
        return ratios, added, f" No {called}: {ratios['method'].iloc[0].removeprefix('not made: ')}."
    return ratios, added, ""


def draw_ratios(axes: Axes, table: pd.DataFrame, colour: str, name: str, ticks: tuple[float, ...]) -> None:
    """A row per variable of `table` (variable, value, low, high) on a logarithmic axis called `name`, with those of `ticks` that it reaches."""
    axes.axvline(1, color=SOFT, linewidth=0.7, linestyle=(0, (3, 2)))
    for height, row in enumerate(table.itertuples()):
        interval_in_row(axes, height, row, colour if row.variable == "score" else SOFT)
    names = ["Slide score" if name == "score" else column_name(name) for name in table["variable"]]
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.minorticks_off()
    reach = float(min(np.nanmax([2, *table["high"], *1 / table["low"]]), REACH))
    shown = [tick for tick in ticks if 1 / reach <= tick <= reach]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set(xlim=(1 / reach / 1.1, reach * 1.1), ylim=(len(names) - 0.4, -0.6), xlabel=name)
