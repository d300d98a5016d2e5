"""Survival of patients at higher and at lower predicted risk, groups cut where each model's scores of them halve."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.endpoints.survival import LOG_RANK, risk_groups
from mil.figures.arms import input_name
from mil.figures.cohort_table import p_words
from mil.figures.layout import capital
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, column_name, new_figure, strategy_name
from mil.figures.survival_curves import draw_curves
from mil.results.results import Absent, Results
from mil.statistics.arms import GROUPS as SITE_GROUPS
from mil.statistics.arms import Scope

GROUPS = {1: "higher risk", 0: "lower risk"}


@figure(
    "Survival by predicted risk",
    needs=("predictions", "bags", "metrics"),
    endpoints=("survival",),
    chapter="performance",
    number="ED9",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Kaplan-Meier curves with numbers at risk and a log-rank test: a panel for training and for external sites."""
    there = [results.main_scope(group) for group in SITE_GROUPS if results.has_scores(group)]
    grouped = [(scope, risk_groups(scope, results.predictions(results.main))) for scope in there]
    if not grouped:
        raise Absent(f"{results.main} judges no patient who is held out or at an external site")
    picture = new_figure(DOUBLE_MM if len(grouped) > 1 else 95, 92)
    picture.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    panels = picture.subplots(1, len(grouped), squeeze=False)[0]
    time, confidence = results.endpoints[results.endpoint].column, results.config.metrics.confidence
    data = []
    for axes, (scope, table) in zip(panels, grouped, strict=True):
        p = results.measured(results.main, scope, LOG_RANK)[0]
        curves = results.curve("survival", results.main, scope)
        data += _panel(axes, scope, curves, table, p, column_name(time))
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(data, ignore_index=True),
        n="; ".join(
            f"{scope.site} {len(table)} patients, {int(table['event'].sum())} events" for scope, table in grouped
        ),
        caption=(
            f"Kaplan-Meier curves by the risk that {strategy_name(main.strategy.name)} ({input_name(main)}) predicts, with {confidence:.0%} intervals. "
            "A model puts a patient at higher risk when its score is at least the median of its scores of the patients of its held-out fold, or of external sites, "
            "and a patient stands where at least half of the models that did not see them put them. Times and events had no part in the cut; it is "
            "made for these patients and is no threshold for others. p: log-rank test stratified by site."
        ),
    )


def _panel(
    axes: Axes, scope: Scope, curves: pd.DataFrame, table: pd.DataFrame, p: float, time: str
) -> list[pd.DataFrame]:
    table = table.assign(group=table["higher"].map(GROUPS))
    curves = curves.rename(columns={"x": "time", "y": "survival", "patients": "at_risk"})
    curves = curves.assign(group=curves["group"].astype(int).map(GROUPS))
    curves = curves[["group", "time", "survival", "low", "high", "at_risk"]].astype({"at_risk": int})
    labels = {group: _label(group, table[table["group"] == group]) for group in GROUPS.values()}
    draw_curves(axes, curves, table, GROUPS, labels, time)
    tested = f"log-rank {p_words(p)}" if np.isfinite(p) else "no log-rank test: no event while both groups are followed"
    axes.set_title(f"{capital(scope.site)}, {tested}", fontsize=7, pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, borderpad=0, labelspacing=0.3)
    stated = {"site": scope.site, "trained_on": scope.trained_on}
    patients = table.drop(columns="higher").assign(kind="patient", **stated, log_rank_p=p)
    return [curves.assign(kind="curve", **stated), patients]


def _label(group: str, table: pd.DataFrame) -> str:
    return f"{group}: {len(table)} patients, {int(table['event'].sum())} events"
