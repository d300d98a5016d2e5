"""ROC curves of local, pooled and federated models, one panel a site."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arms_at, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import legend_under, outer_panels, site_panels, title_of_site, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import chance_line
from mil.results.results import Absent, Results
from mil.statistics.arms import Scope
from mil.statistics.bootstrap import bootstrap_weights
from mil.statistics.ranking import roc_curve

GRID = np.linspace(0, 1, 101)


@figure("ROC curves by site", needs=("predictions", "bags", "metrics"), chapter="performance", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Every arm of the main experiment's family at every site; the band belongs to the most collaborative one."""
    drawn = {site: arms_at(results, site) for site in results.sites}
    drawn = {site: found for site, found in drawn.items() if found}
    if not drawn:
        raise Absent("no site has patients of both classes with predictions")
    most = max(len(found) for found in drawn.values())
    picture, panels = site_panels(list(drawn), below_mm=1 + 3.4 * most)
    values = []
    for axes, (site, found) in zip(panels, drawn.items(), strict=True):
        values += _panel(axes, results, site, found)
    for axes in outer_panels(panels):
        axes.set_ylabel("Sensitivity")
    patients = sum(len(next(iter(found))[1].table) for found in drawn.values())
    main = results.experiments[results.main]
    each = [(one.experiment, scope) for found in drawn.values() for one, scope in found]
    shown = [results.measured_row(*one, results.kind.primary.name) for one in each]
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=f"{patients} patients at {len(drawn)} sites",
        caption=(
            f"ROC curves of {input_name(main)} for {main.endpoint}, by site and strategy. Training sites: every patient "
            "by models that did not see them (mean over repeats). External sites: mean over all models. In the legends AUROC "
            f"{with_intervals(pd.DataFrame(shown), results.config.metrics.confidence)}; the curve of held-out patients is of their mean scores; the band is the patient bootstrap "
            "of the last curve in the legend."
        ),
    )


def _panel(axes: Axes, results: Results, site: str, found: list[tuple[Arm, Scope]]) -> list[pd.DataFrame]:
    chance_line(axes, diagonal=True)
    values = []
    for one, scope in found:
        false_rate, true_rate = roc_curve(scope.labels, scope.scores)
        value, low, high = results.measured(one.experiment, scope, results.kind.primary.name)
        label = f"{one.name}  {with_interval(value, low, high)}"
        axes.plot(false_rate, true_rate, color=one.colour, linestyle=one.line, label=label, drawstyle="default")
        stated = {"site": site, "experiment": one.experiment, "trained_on": one.trained_on}
        curve = pd.DataFrame({"false_positive_rate": false_rate, "true_positive_rate": true_rate})
        values.append(curve.assign(kind="curve", **stated, auroc=value, auroc_low=low, auroc_high=high))
    last, scope = found[-1]
    low_band, high_band = _band(scope, results)
    axes.fill_between(GRID, low_band, high_band, color=last.colour, alpha=0.13, linewidth=0)
    band = pd.DataFrame({"false_positive_rate": GRID, "band_low": low_band, "band_high": high_band})
    values.append(band.assign(kind="band", site=site, experiment=last.experiment, trained_on=last.trained_on))
    role = results.config.slides.roles[site]
    title_of_site(axes, site, f"{'trains' if role == 'train' else 'external'}, n = {len(scope.table)}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    legend_under(axes)
    return values


def _band(scope: Scope, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise percentile band of sensitivity at each 1 - specificity, from the same resamples as the metrics."""
    spec = results.config.metrics
    weights = bootstrap_weights(scope.table, spec)[:500]
    order = np.argsort(-scope.scores, kind="stable")
    positive = weights[:, order] * (scope.labels[order] == 1)
    negative = weights[:, order] * (scope.labels[order] == 0)
    true_rate = np.cumsum(positive, axis=1) / positive.sum(axis=1, keepdims=True)
    false_rate = np.cumsum(negative, axis=1) / negative.sum(axis=1, keepdims=True)
    curves = np.stack([np.interp(GRID, np.r_[0, x], np.r_[0, y]) for x, y in zip(false_rate, true_rate, strict=True)])
    tail = (1 - spec.confidence) / 2
    return tuple(np.quantile(curves, [tail, 1 - tail], axis=0))  # type: ignore[return-value]
