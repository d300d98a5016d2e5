"""Net benefit of acting on the model, on a clinical model, on nobody and on everybody, one panel a site."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import baseline_arm, input_name, main_scopes
from mil.figures.layout import outer_panels, site_panels, title_of_site
from mil.figures.registry import Drawn, figure
from mil.figures.style import FAINT, SOFT, strategy_colour, strategy_name
from mil.results.results import Absent, Results
from mil.statistics import intervals
from mil.statistics.arms import Scope
from mil.statistics.decision import net_benefit, treat_all

THRESHOLDS = np.round(np.arange(0.05, 0.701, 0.025), 3)


@figure("Decision curves by site", needs=("predictions", "bags", "baselines"), chapter="use", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Net benefit over the range of thresholds, with a pointwise band for the main model."""
    scopes = main_scopes(results, both=True)
    picture, panels = site_panels(list(scopes), foot_mm=6)
    main = results.experiments[results.main]
    colour, name = strategy_colour(main.strategy.name), strategy_name(main.strategy.name)
    values, bottom, top = [], -0.1, 0.1
    for axes, (site, scope) in zip(panels, scopes.items(), strict=True):
        everybody = [treat_all(scope.labels, threshold) for threshold in THRESHOLDS]
        axes.plot(THRESHOLDS, everybody, color=FAINT, linewidth=2.6, solid_capstyle="butt", label="Everybody")
        axes.axhline(0, color=SOFT, linewidth=0.8, linestyle=(0, (4, 2)), label="Nobody")
        curve, band = _curve(scope, results.config.metrics.confidence)
        axes.fill_between(THRESHOLDS, *band, color=colour, alpha=0.15, linewidth=0)
        clinical = _clinical(results, site)
        if clinical is not None:
            look = baseline_arm(results, "clinical_pooled")
            other = _curve(clinical, results.config.metrics.confidence)[0]
            axes.plot(THRESHOLDS, other, color=look.colour, linewidth=1.1, label=look.name)
            values.append(
                pd.DataFrame({"site": site, "model": look.name, "threshold": THRESHOLDS, "net_benefit": other})
            )
        axes.plot(THRESHOLDS, curve, color=colour, linewidth=1.5, label=name)
        title_of_site(axes, site, f"n = {len(scope.table)}")
        bottom, top = min(bottom, float(band.min())), max(top, float(band.max()))
        axes.set(xlim=(0, THRESHOLDS[-1] + 0.02), xlabel="Threshold", xticks=[0, 0.2, 0.4, 0.6])
        stated = {"site": site, "threshold": THRESHOLDS}
        values.append(pd.DataFrame({**stated, "model": name, "net_benefit": curve, "low": band[0], "high": band[1]}))
        values.append(pd.DataFrame({**stated, "model": "Everybody", "net_benefit": everybody}))
    for axes in panels:  # of "everybody" what lies below every band is cut off
        axes.set_ylim(bottom - 0.02, top + 0.02)
    for axes in outer_panels(panels):
        axes.set_ylabel("Net benefit a patient")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="lower center", ncols=len(labels), borderaxespad=0.2)
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=f"{sum(len(scope.table) for scope in scopes.values())} patients at {len(scopes)} sites",
        caption=(
            f"Net benefit (true positives less false positives weighed by the odds of the threshold, a patient) of acting "
            f"on {name}, {input_name(main)}, against acting on everybody, on nobody and, where there are clinical columns, on the pooled "
            f"clinical model. Band: {results.config.metrics.confidence:.0%} intervals at each threshold (MOVER)."
        ),
    )


def _curve(scope: Scope, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Net benefit at each threshold, and its band (2, thresholds)."""
    one = np.ones((1, len(scope.table)))
    curve = np.array([net_benefit(scope.labels, scope.scores, one, t)[0] for t in THRESHOLDS])
    found = [intervals.net_benefit(scope.labels, scope.scores, t, confidence) for t in THRESHOLDS]
    return curve, np.array([[bounds.low for bounds in found], [bounds.high for bounds in found]])


def _clinical(results: Results, site: str) -> Scope | None:
    """The pooled clinical baseline at a site, on the very patients that the slide model has there."""
    try:
        there = results.baseline_scopes(results.endpoint).get("clinical_pooled", [])
    except Absent:
        return None
    return next((scope for scope in there if scope.site == site and scope.split != "transfer"), None)
