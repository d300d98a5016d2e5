"""Survival of patients who are predicted positive and negative, and whether the score adds to clinical columns."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.endpoints.survival_analysis import CoxModels, c_index_interval, cox_models, follow_up, kaplan_meier, log_rank
from mil.errors import MilError
from mil.figures.arms import input_name, main_at
from mil.figures.cohort_table import p_words
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, SOFT, column_name, new_figure, strategy_colour, strategy_name
from mil.figures.survival_curves import draw_curves
from mil.results.results import Absent, Results

GROUPS = {1: "predicted positive", 0: "predicted negative"}
MIN_GROUP = 3


@figure("Survival by prediction", needs=("predictions", "bags", "patients"), chapter="use", number="ED9")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Kaplan-Meier curves with numbers at risk; beside them the hazard ratios of Cox models."""
    metrics = results.config.metrics
    if metrics.time is None or metrics.event is None:
        raise Absent("no follow-up is named (metrics.time and metrics.event in the cohort file)")
    patients = results.patients()
    scores = pd.concat([main_at(results, site).table for site in results.sites], ignore_index=True).set_index(
        "patient_id"
    )
    table = follow_up(patients, metrics.time, metrics.event).join(scores, how="inner")
    if table["event"].sum() < MIN_GROUP:
        raise Absent(f"{int(table['event'].sum())} events in {len(table)} patients are too few for survival curves")
    called = (table["score"] >= 0.5).astype(int)
    if min(called.sum(), (1 - called).sum()) < MIN_GROUP:
        raise Absent(f"fewer than {MIN_GROUP} of {len(table)} patients are predicted positive, or negative")
    table["group"] = called.map(GROUPS)
    value, low, high = c_index_interval(table, metrics.confidence)
    try:
        cox, why = cox_models(table, patients, metrics.clinical, metrics.confidence), ""
    except MilError as error:
        cox, why = None, f" No Cox model: {error}."
    picture = new_figure(DOUBLE_MM if cox else 95, 78)
    panels = picture.subplots(1, 2 if cox else 1, squeeze=False, width_ratios=(1.25, 1) if cox else (1,))[0]
    curves = kaplan_meier(table, metrics.confidence)
    draw_curves(
        panels[0], curves, table, GROUPS, {group: group for group in GROUPS.values()}, column_name(metrics.time)
    )
    panels[0].legend(loc="lower left")
    tested = f"Log-rank {p_words(log_rank(table))}"
    panels[0].text(0.98, 0.97, tested, transform=panels[0].transAxes, ha="right", va="top", fontsize=6.5)
    if cox:
        _ratios(panels[1], cox, strategy_colour(results.experiments[results.main].strategy.name))
    main = results.experiments[results.main]
    added = (
        f" Hazard ratios for a standard deviation with {metrics.confidence:.0%} intervals, Cox model with the score. Whether the score adds to the clinical columns: likelihood ratio {cox.likelihood_ratio:.2f}, {p_words(cox.p)}."
        if cox
        else why
    )
    return Drawn(
        figure=picture,
        data=pd.concat(
            [
                curves.assign(kind="curve"),
                *([cox.ratios.assign(kind="hazard ratio")] if cox else []),
                table[["time", "event", "score", "group"]].reset_index().assign(kind="patient"),
            ],
            ignore_index=True,
        ),
        n=f"{len(table)} patients, {int(table['event'].sum())} events",
        caption=(
            f"Kaplan-Meier curves of patients whom {strategy_name(main.strategy.name)} ({input_name(main)}) gives a score of at least 0.5 or less, with "
            f"{metrics.confidence:.0%} intervals and a log-rank test. c-index of the score {value:.2f} [{low:.2f}, {high:.2f}] (jackknife, logit scale; above 0.5: a higher "
            f"score, longer without event).{added}"
        ),
    )


def _ratios(axes: Axes, cox: CoxModels, colour: str) -> None:
    part = cox.ratios[cox.ratios["model"] == "clinical + score"].reset_index(drop=True)
    axes.axvline(1, color=SOFT, linewidth=0.7, linestyle=(0, (3, 2)))
    for place, row in enumerate(part.itertuples()):
        mine = colour if row.covariate == "score" else SOFT
        axes.plot([row.low, row.high], [place, place], color=mine, linewidth=1.4)
        axes.plot(row.ratio, place, "o", color=mine, markersize=4.5)
        text = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=6.3)
    names = ["Slide score" if name == "score" else column_name(name) for name in part["covariate"]]
    axes.set_yticks(range(len(part)), names)
    axes.set_xscale("log")
    reach = float(max(part["high"].max(), 1 / part["low"].min(), 2))
    axes.set(ylim=(len(part) - 0.4, -0.6), xlim=(1 / reach / 1.1, reach * 1.1), xlabel="Hazard ratio")
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 10) if 1 / reach <= tick <= reach]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"Cox model, {cox.patients} patients")
