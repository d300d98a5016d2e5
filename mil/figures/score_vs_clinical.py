"""The main model's score against TILs, Ki67, grade, ..., and what it adds to them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.bags.covariates import clinical_inputs
from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.cohort_table import p_words
from mil.figures.layout import legend_of_figure
from mil.figures.ratios import draw_ratios, model_rows
from mil.figures.registry import Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    column_name,
    dots,
    letters,
    new_figure,
    site_colour,
    site_marker,
    strategy_colour,
    strategy_name,
)
from mil.metrics.clinical import ODDS, SPEARMAN, clinical_columns, main_scores
from mil.results.results import Absent, Results
from mil.rng import rng

MAX_PANELS, MOST_TICKS = 7, 7
TICKS = (0.01, 0.1, 0.5, 1, 2, 10, 100)


@figure("Score and clinical variables", needs=("predictions", "patients", "comparisons"), chapter="use", number="F4d")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A panel a variable with Spearman's correlation; the last: odds ratios of a model with all of them and the score."""
    metrics = results.config.metrics
    columns = clinical_columns(metrics)
    if not columns:
        raise Absent("no clinical column is named (metrics.clinical and metrics.annotation in the cohort file)")
    inputs, scores = clinical_inputs(results.patients(), columns), main_scores(results).set_index("patient_id")
    inputs, analyses = inputs.reindex(scores.index), results.clinical("associations").set_index("analysis", drop=False)
    table = analyses.loc[analyses.index == SPEARMAN].head(MAX_PANELS)
    shown = list(table["variable"])
    odds, added, why = model_rows(analyses, ODDS, "multivariable model")
    count = len(shown) + len(added)
    across = min(4, count)
    down = -(-count // across)
    picture = new_figure(DOUBLE_MM, 50 * down + 6 + 1.5 * len(results.sites))
    panels = picture.subplots(down, across, squeeze=False).ravel()
    for axes, column, row in zip(panels, shown, table.itertuples(), strict=False):
        _scatter(axes, results, scores, inputs[column], str(column), row)
    for axes in panels[count:]:
        axes.axis("off")
    for axes in panels[: len(shown) : across]:
        axes.set_ylabel("Score")
    if len(added):
        axes, colour = panels[count - 1], strategy_colour(results.experiments[results.main].strategy.name)
        draw_ratios(axes, odds, colour, "Odds ratio", TICKS)
        axes.set_title(f"Together, {int(odds['patients'].iloc[0])} patients", fontsize=6.8, fontweight=400)
    letters(panels[:count])
    handles, labels = panels[0].get_legend_handles_labels()
    legend_of_figure(picture, handles, labels)
    main = results.experiments[results.main]
    said = (
        f" Odds ratios for a standard deviation with {metrics.confidence:.0%} intervals, from one logistic regression of {main.endpoint} on all "
        f"columns and the score. With the score beside the columns: likelihood ratio {added['value'].iloc[0]:.2f}, {p_words(added['p'].iloc[0])} for the score (held-out patients: overlap of training sets counted)."
        if len(added)
        else why
    )
    return Drawn(
        figure=picture,
        data=pd.concat(
            [
                table,
                odds,
                added,
                scores.join(inputs[shown], rsuffix=" (patient table)").reset_index().assign(analysis="patient"),
            ],
            ignore_index=True,
        ),
        n=f"{len(scores)} patients",
        caption=(
            f"Score of {strategy_name(main.strategy.name)}, {input_name(main)}, against clinical variables, a mark a patient; ρ: Spearman's correlation, "
            f"p after Holm's correction.{said}"
        ),
    )


def _scatter(axes: Axes, results: Results, scores: pd.DataFrame, values: pd.Series, name: str, row) -> None:
    few = values.nunique() <= 6
    jitter = rng(0, "jitter", name).uniform(-0.16, 0.16, len(values)) if few else np.zeros(len(values))
    for site in (site for site in results.sites if site in set(scores["site"])):
        mine = (scores["site"] == site).to_numpy()
        look = {"marker": site_marker(site, results.sites), "label": site}
        x, y = values.to_numpy()[mine] + jitter[mine], scores["score"][mine]
        dots(axes, x, y, site_colour(site, results.sites), 0.75, **look)
    levels = np.sort(values.dropna().unique())
    if few and np.diff(levels).min(initial=np.inf) >= np.ptp(levels) / MOST_TICKS:
        axes.set_xticks(levels)
    axes.set(xlabel=column_name(name), ylim=(-0.03, 1.03))
    axes.set_title(f"ρ = {row.value:z.2f}, {p_words(row.p_adjusted)}".replace("-", "−"), fontsize=6.8, fontweight=400)
