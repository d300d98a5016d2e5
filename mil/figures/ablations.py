"""Encoders and models at equal strategy: AUROC of each pair at training and external sites."""

import pandas as pd

from mil.config import ExperimentSpec, FiguresSpec
from mil.figures.arms import input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import capital, name_rows
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import (
    MIDDLE_MM,
    SPARE_COLOURS,
    chance_line,
    interval_in_row,
    light_grid,
    new_figure,
    row_axis,
    strategy_name,
)
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE, TRAINING_SITES


@figure("Encoders and models", needs=("metrics",), endpoints=ANY, chapter="doubts", number="ED3")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row per encoder and model with one strategy; one colour per encoder."""
    measure = results.kind.primary
    chosen = _of_one_strategy(results)
    main = next(iter(chosen.values()))
    metrics = primary(results.metrics(*chosen)).dropna(subset=["value"])
    if main.strategy.by_site:
        metrics = metrics[metrics["trained_on"].isin([OWN_SITE, ENSEMBLE])]
    groups = [group for group in (TRAINING_SITES, EXTERNAL_SITES) if group in set(metrics["site"])]
    encoders = list(dict.fromkeys(experiment.encoder for experiment in chosen.values()))
    picture = new_figure(MIDDLE_MM + 30, 18 + 6.5 * len(chosen))
    panels = picture.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        light_grid(axes, "x")
        chance_line(axes, vertical=True, at=measure.chance)
        table = metrics[metrics["site"] == group].drop_duplicates("experiment").set_index("experiment")
        for height, (name, experiment) in enumerate(chosen.items()):
            if name not in table.index:
                continue
            row, colour = table.loc[name], SPARE_COLOURS[encoders.index(experiment.encoder) % len(SPARE_COLOURS)]
            interval_in_row(axes, height, row, colour)
            axes.text(
                row["value"],
                height - 0.2,
                f"{row['value']:z.2f}".replace("-", "−"),
                ha="center",
                va="bottom",
                fontsize=6,
            )
        low = min((measure.chance or 0.0) - 0.1, float(metrics["low"].min()) - 0.02)
        axes.set(xlim=(low, 1.02), xlabel=f"{measure.title} within sites")
        axes.set_title(capital(group))
        row_axis(axes)
    names = [capital(input_name(experiment)) for experiment in chosen.values()]
    name_rows(panels[0], names)
    panels[0].set_ylim(len(chosen) - 0.4, -0.6)
    shown = metrics[metrics["site"].isin(groups)]
    return Drawn(
        figure=picture,
        data=pd.DataFrame(shown).reset_index(drop=True),
        n=", ".join(f"{group} {int(shown.loc[shown['site'] == group, 'patients'].max())}" for group in groups),
        caption=(
            f"Encoders and models with {strategy_name(main.strategy.name)} for {main.endpoint}: {measure.title} within sites "
            f"{with_intervals(shown, results.config.metrics.confidence)}. “Colour statistics” are the mean and deviation of RGB in a tile: what an encoder has to beat."
        ),
    )


def _of_one_strategy(results: Results) -> dict[str, ExperimentSpec]:
    """Experiments by name with the main experiment's endpoint and one strategy: the main one's where it has several inputs.

    Otherwise the strategy that has the most encoders and models.
    """
    main = results.experiments[results.main]
    by_strategy: dict[str, dict[str, ExperimentSpec]] = {main.strategy.to_json(): {}}
    for name, experiment in results.experiments.items():
        if experiment.endpoint == main.endpoint:
            by_strategy.setdefault(experiment.strategy.to_json(), {})[name] = experiment
    inputs = {key: len({input_name(experiment) for experiment in group.values()}) for key, group in by_strategy.items()}
    first = next(iter(inputs))
    chosen = first if inputs[first] > 1 else max(inputs, key=lambda key: inputs[key])
    if inputs[chosen] < 2:
        raise Absent("no strategy of the run has more than one encoder and model")
    return by_strategy[chosen]
