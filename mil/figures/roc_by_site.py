"""ROC curves of local, pooled and federated models, one panel a site."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arms_at, input_name
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import DOUBLE_MM, SOFT, chance_line, new_figure
from mil.metrics import delong
from mil.metrics.arms import Scope
from mil.metrics.ranking import roc_curve
from mil.metrics.score import bootstrap_weights

PANELS_A_ROW = 4
GRID = np.linspace(0, 1, 101)


@figure("ROC curves by site", needs=("predictions", "bags"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Every arm of the main experiment's family at every site; the band belongs to the most collaborative one."""
    drawn = {site: arms_at(results, site) for site in results.sites}
    drawn = {site: found for site, found in drawn.items() if found}
    if not drawn:
        raise Absent("no site has patients of both classes with predictions")
    columns = min(PANELS_A_ROW, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    most = max(len(found) for found in drawn.values())
    width = min(DOUBLE_MM, 62 * columns)
    picture = new_figure(width, rows * (width / columns + 4 + 3.6 * most))
    panels = picture.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    values = []
    for axes, (site, found) in zip(panels, drawn.items(), strict=False):
        values += _panel(axes, results, site, found)
    for axes in panels[len(drawn) :]:
        axes.axis("off")
    for axes in panels[::columns]:
        axes.set_ylabel("Sensitivity")
    patients = sum(len(next(iter(found))[1].table) for found in drawn.values())
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=f"{patients} patients at {len(drawn)} sites",
        caption=(
            f"ROC curves of {input_name(main)} for {main.endpoint}, by site and strategy. Training sites: every patient "
            "by models that did not see them (mean over repeats). External sites: mean over all models. In brackets "
            f"{results.config.metrics.confidence:.0%} intervals (DeLong, logit scale); the band is the patient bootstrap "
            "of the last curve in the legend."
        ),
    )


def _panel(axes: Axes, results: Results, site: str, found: list[tuple[Arm, Scope]]) -> list[pd.DataFrame]:
    confidence = results.config.metrics.confidence
    chance_line(axes, diagonal=True)
    values = []
    for one, scope in found:
        false_rate, true_rate = roc_curve(scope.labels, scope.scores)
        value, low, high = delong.logit_interval(scope.labels, scope.scores, confidence)
        label = f"{one.name}  {value:.2f} [{low:.2f}, {high:.2f}]"
        axes.plot(false_rate, true_rate, color=one.colour, linestyle=one.line, label=label, drawstyle="default")
        values.append(
            pd.DataFrame(
                {
                    "site": site,
                    "experiment": one.experiment,
                    "trained_on": one.trained_on,
                    "false_positive_rate": false_rate,
                    "true_positive_rate": true_rate,
                }
            )
        )
    last, scope = found[-1]
    low_band, high_band = _band(scope, results)
    axes.fill_between(GRID, low_band, high_band, color=last.colour, alpha=0.13, linewidth=0)
    role = results.config.slides.roles[site]
    axes.set_title(f"{site}")
    axes.text(
        1, 1.015, f"{'trains' if role == 'train' else 'external'}, n = {len(scope.table)}", ha="right", va="bottom",
        transform=axes.transAxes, color=SOFT, fontsize=6.3,
    )  # fmt: skip
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_box_aspect(1)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.27), fontsize=6, borderpad=0, handlelength=1.6, labelspacing=0.35
    )
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
