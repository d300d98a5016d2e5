"""Kaplan-Meier curves of groups of patients in one panel: intervals, marks of who was censored, numbers at risk."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mil.figures.style import CLASS_COLOURS, SOFT


def draw_curves(
    axes: Axes,
    curves: pd.DataFrame,
    table: pd.DataFrame,
    groups: Mapping[int, str],
    labels: Mapping[str, str],
    time: str,
) -> None:
    """Curves as `mil.statistics.survival.kaplan_meier` gives them for `table` (time, event, group).

    `groups` names the group of each class, whose colour it has; `labels` what the legend says of it; `time` the axis.
    """
    last = float(table["time"].max())
    ticks = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 6, 10]).tick_values(0, last))
    ticks = ticks[(ticks >= 0) & (ticks <= last)]
    for row, (label, group) in enumerate(groups.items()):
        part, mine, colour = curves[curves["group"] == group], table[table["group"] == group], CLASS_COLOURS[label]
        axes.step(part["time"], part["survival"], where="post", color=colour, linewidth=1.4, label=labels[group])
        axes.fill_between(part["time"], part["low"], part["high"], step="post", color=colour, alpha=0.13, linewidth=0)
        gone = mine.loc[~mine["event"], "time"]
        height = [part.loc[part["time"] <= moment, "survival"].iloc[-1] for moment in gone]
        axes.plot(gone, height, "|", color=colour, markersize=3.5, markeredgewidth=0.7)
        for tick in ticks:
            axes.text(
                tick, -0.29 - 0.07 * row, str(int((mine["time"] >= tick).sum())), ha="center", va="center",
                fontsize=6.3, color=colour, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    axes.text(-0.02, -0.22, "At risk", fontsize=6.3, color=SOFT, transform=axes.transAxes, ha="left", va="center")
    axes.set(xlim=(0, last * 1.02), ylim=(0, 1.02), xlabel=time, ylabel="Without event", xticks=ticks)
