"""The main model's score against TILs, Ki67, grade, ..., and what it adds to them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from mil.bags.covariates import clinical_inputs
from mil.config import FiguresSpec
from mil.errors import MilError
from mil.figures.arms import input_name, main_at
from mil.figures.cohort_table import p_words
from mil.figures.layout import legend_of_figure
from mil.figures.registry import Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    SOFT,
    column_name,
    new_figure,
    site_colour,
    site_marker,
    strategy_colour,
    strategy_name,
)
from mil.metrics.added_value import AddedValue, added_value
from mil.results.results import Absent, Results
from mil.rng import rng
from mil.statistics.multiplicity import holm

MAX_PANELS, MOST_TICKS = 7, 7


@figure("Score and clinical variables", needs=("predictions", "bags", "patients"), chapter="use", number="F4d")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A panel a variable with Spearman's correlation; the last: odds ratios of a model with all of them and the score."""
    metrics = results.config.metrics
    annotation = (metrics.annotation,) if metrics.annotation else ()
    columns = tuple(dict.fromkeys((*annotation, *metrics.clinical)))
    if not columns:
        raise Absent("no clinical column is named (metrics.clinical and metrics.annotation in the cohort file)")
    patients = results.patients()
    scores = pd.concat([main_at(results, site).table for site in results.sites], ignore_index=True).set_index(
        "patient_id"
    )
    inputs = clinical_inputs(patients, columns).reindex(scores.index)
    shown = [column for column in inputs.columns if inputs[column].nunique() > 1][:MAX_PANELS]
    table = pd.DataFrame([_spearman(inputs[column], scores["score"]) for column in shown])
    table["p_adjusted"] = holm(table["p"].to_numpy())
    try:
        added, why = added_value(scores, patients, columns, metrics.confidence), ""
    except MilError as error:
        added, why = None, f" No multivariable model: {error}."
    count = len(shown) + (added is not None)
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
    if added is not None:
        _odds(panels[count - 1], added, strategy_colour(results.experiments[results.main].strategy.name))
    handles, labels = panels[0].get_legend_handles_labels()
    legend_of_figure(picture, handles, labels)
    main = results.experiments[results.main]
    said = (
        f" Odds ratios for a standard deviation with {metrics.confidence:.0%} intervals, from one logistic regression of {main.endpoint} on all "
        f"columns and the score. With the score beside the columns: likelihood ratio {added.likelihood_ratio:.2f}, {p_words(added.p)} for the score."
        if added
        else why
    )
    return Drawn(
        figure=picture,
        data=pd.concat(
            [
                table.assign(kind="correlation"),
                *([added.ratios.assign(kind="odds ratio")] if added else []),
                scores.join(inputs[shown]).reset_index().assign(kind="patient"),
            ],
            ignore_index=True,
        ),
        n=f"{len(scores)} patients",
        caption=(
            f"Score of {strategy_name(main.strategy.name)}, {input_name(main)}, against clinical variables, a mark a patient; ρ: Spearman's correlation, "
            f"p after Holm's correction.{said}"
        ),
    )


def _spearman(values: pd.Series, scores: pd.Series) -> dict[str, object]:
    known = values.notna()
    tested = stats.spearmanr(values[known], scores[known])
    return {
        "variable": values.name,
        "patients": int(known.sum()),
        "rho": float(tested.statistic),
        "p": float(tested.pvalue),
    }


def _scatter(axes: Axes, results: Results, scores: pd.DataFrame, values: pd.Series, name: str, row) -> None:
    few = values.nunique() <= 6
    jitter = rng(0, "jitter", name).uniform(-0.16, 0.16, len(values)) if few else np.zeros(len(values))
    for site in results.sites:
        mine = (scores["site"] == site).to_numpy()
        axes.plot(
            values.to_numpy()[mine] + jitter[mine], scores["score"][mine], site_marker(site, results.sites),
            color=site_colour(site, results.sites), markersize=2.8, alpha=0.75, markeredgewidth=0, label=site,
        )  # fmt: skip
    levels = np.sort(values.dropna().unique())
    if few and np.diff(levels).min(initial=np.inf) >= np.ptp(levels) / MOST_TICKS:
        axes.set_xticks(levels)
    axes.set(xlabel=column_name(name), ylim=(-0.03, 1.03))
    axes.set_title(f"ρ = {row.rho:.2f}, {p_words(row.p_adjusted)}".replace("-", "−"), fontsize=6.8, fontweight=400)


def _odds(axes: Axes, added: AddedValue, colour: str) -> None:
    axes.axvline(1, color=SOFT, linewidth=0.7, linestyle=(0, (3, 2)))
    for place, row in enumerate(added.ratios.itertuples()):
        mine = colour if row.covariate == "score" else SOFT
        axes.plot([row.low, row.high], [place, place], color=mine, linewidth=1.3)
        axes.plot(row.ratio, place, "o", color=mine, markersize=4)
    names = ["Slide score" if name == "score" else column_name(name) for name in added.ratios["covariate"]]
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.minorticks_off()
    reach = float(np.clip(max(added.ratios["high"].max(), 1 / added.ratios["low"].min()), 2, 100))
    ticks = [tick for tick in (0.01, 0.1, 0.5, 1, 2, 10, 100) if 1 / reach <= tick <= reach]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlim=(1 / reach / 1.1, reach * 1.1), ylim=(len(names) - 0.4, -0.6), xlabel="Odds ratio")
    axes.set_title(f"Together, {added.patients} patients", fontsize=6.8, fontweight=400)
