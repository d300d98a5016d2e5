"""Predicted against observed numbers, one panel a site."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import input_name, main_scopes
from mil.figures.layout import legend_under, site_panels, title_of_site
from mil.figures.registry import Drawn, figure
from mil.figures.style import FAINT, column_name, dots, light_grid, site_colour, strategy_name
from mil.results.results import Results
from mil.statistics.arms import Scope


@figure(
    "Predicted and observed",
    needs=("predictions", "bags", "metrics"),
    endpoints=("regression",),
    chapter="performance",
    number="F3c",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A dot a patient; the grey line is agreement, the coloured one the least-squares line of observed on predicted."""
    drawn = main_scopes(results)
    everyone = pd.concat([scope.table for scope in drawn.values()])[["label", "score"]]
    reach = float(everyone.min().min()), float(everyone.max().max())
    room = 0.04 * (reach[1] - reach[0] or 1.0)
    name = column_name(results.endpoints[results.endpoint].column)
    picture, panels = site_panels(list(drawn), f"{name}, observed", below_mm=15)
    data = []
    for axes, (site, scope) in zip(panels, drawn.items(), strict=True):
        data.append(_panel(axes, results, site, scope, (reach[0] - room, reach[1] + room)))
    for axes in panels:
        axes.set_xlabel(f"{name}, predicted")
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(data, ignore_index=True),
        n=", ".join(f"{site} {len(scope.table)}" for site, scope in drawn.items()),
        caption=(
            f"{name} of every patient as {strategy_name(main.strategy.name)} ({input_name(main)}) predicts it, and as it is. Training sites: by models "
            f"that did not see the patient. Intervals {results.config.metrics.confidence:.0%}, by a bootstrap over patients. Dashed: agreement; in colour the "
            "least-squares line of observed on predicted, whose slope is 1 where predictions are neither too far apart nor too close."
        ),
    )


def _panel(axes: Axes, results: Results, site: str, scope: Scope, reach: tuple[float, float]) -> pd.DataFrame:
    measures = (results.kind.primary, *results.kind.further)
    values = {measure.name: results.measured(results.main, scope, measure.name) for measure in measures}
    observed, predicted = scope.labels.astype(float), scope.scores.astype(float)
    colour = site_colour(site, results.sites)
    light_grid(axes, "both")
    axes.plot(reach, reach, color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
    dots(axes, predicted, observed, colour, 0.75)
    slope = values["calibration_slope"][0]
    if np.isfinite(slope):
        ends = np.array([predicted.min(), predicted.max()])
        axes.plot(ends, observed.mean() + slope * (ends - predicted.mean()), color=colour, linewidth=1.2)
    for name in ("spearman", "mae", "r2", "calibration_slope"):
        title = {measure.name: measure.title for measure in measures}[name]
        axes.plot([], [], " ", label=f"{title}  {_said(*values[name])}")
    role = results.config.slides.roles[site]
    title_of_site(axes, site, f"{'held out' if role == 'train' else 'external'}, n = {len(observed)}")
    axes.set(xlim=reach, ylim=reach)
    legend_under(axes)
    table = scope.table.rename(columns={"label": "observed", "score": "predicted"})
    return table.assign(**{name: row[0] for name, row in values.items()})


def _said(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "not defined"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else "")
