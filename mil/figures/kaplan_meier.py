"""Survival of patients who are predicted positive and negative, and whether the score adds to clinical columns."""

import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.cohort_table import p_words
from mil.figures.layout import with_interval
from mil.figures.ratios import draw_ratios, model_rows
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, column_name, letters, new_figure, strategy_colour, strategy_name
from mil.figures.survival_curves import draw_curves
from mil.metrics.clinical import CONCORDANCE, GROUPS, HAZARD, LOG_RANK, by_prediction, main_scores
from mil.results.results import Absent, Results

TICKS = (0.1, 0.25, 0.5, 1, 2, 4, 10)


@figure("Survival by prediction", needs=("predictions", "patients", "comparisons"), chapter="use", number="ED9")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Kaplan-Meier curves with numbers at risk; beside them the hazard ratios of Cox models."""
    metrics = results.config.metrics
    if metrics.time is None or metrics.event is None:
        raise Absent("no follow-up is named (metrics.time and metrics.event in the cohort file)")
    table = by_prediction(results, main_scores(results).set_index("patient_id"))
    curves, analyses = results.clinical("survival"), results.clinical("associations").set_index("analysis", drop=False)
    cox, added, why = model_rows(analyses, HAZARD, "Cox model")
    index, tested = analyses.loc[CONCORDANCE], analyses.loc[analyses.index == LOG_RANK]
    picture = new_figure(DOUBLE_MM if len(added) else 95, 78)
    panels = picture.subplots(1, 1 + len(added), squeeze=False, width_ratios=(1.25, 1)[: 1 + len(added)])[0]
    draw_curves(
        panels[0], curves, table, GROUPS, {group: group for group in GROUPS.values()}, column_name(metrics.time)
    )
    panels[0].legend(loc="lower left")
    words = f"Log-rank {p_words(tested['p'].iloc[0])}" if len(tested) else ""
    panels[0].text(0.98, 0.97, words, transform=panels[0].transAxes, ha="right", va="top", fontsize=6.5)
    if len(added):
        letters(panels)
        colour = strategy_colour(results.experiments[results.main].strategy.name)
        draw_ratios(panels[1], cox, colour, "Hazard ratio", TICKS)
        for height, row in enumerate(cox.itertuples()):
            text = with_interval(row.value, row.low, row.high)
            panels[1].text(1.02, height, text, transform=panels[1].get_yaxis_transform(), va="center", fontsize=6.3)
        panels[1].set_title(f"Cox model, {int(cox['patients'].iloc[0])} patients")
    main = results.experiments[results.main]
    said = (
        f" Hazard ratios for a standard deviation with {metrics.confidence:.0%} intervals, Cox model with the score. Whether the score adds to the clinical columns: likelihood ratio {added['value'].iloc[0]:.2f}, {p_words(added['p'].iloc[0])}."
        if len(added)
        else why
    )
    return Drawn(
        figure=picture,
        data=pd.concat(
            [
                curves.assign(analysis="curve"),
                cox,
                table[["time", "event", "score", "group"]].reset_index().assign(analysis="patient"),
            ],
            ignore_index=True,
        ),
        n=f"{len(table)} patients, {int(table['event'].sum())} events",
        caption=(
            f"Kaplan-Meier curves of patients whom {strategy_name(main.strategy.name)} ({input_name(main)}) gives a score of at least 0.5 or less, with "
            f"{metrics.confidence:.0%} intervals and a log-rank test. c-index of the score {with_interval(index['value'], index['low'], index['high'])} (jackknife, logit scale; above 0.5: a higher "
            f"score, longer without event).{said}"
        ),
    )
