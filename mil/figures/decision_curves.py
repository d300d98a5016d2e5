"""Net benefit of acting on the model, on a clinical model, on nobody and on everybody, one panel a site."""

import pandas as pd

from mil.config import FiguresSpec
from mil.endpoints.curves import THRESHOLDS
from mil.figures.arms import baseline_arm, input_name, main_scopes
from mil.figures.layout import site_panels, title_of_site
from mil.figures.registry import Drawn, figure
from mil.figures.style import FAINT, SOFT, strategy_colour, strategy_name
from mil.results.results import Absent, Results
from mil.statistics.arms import Scope


@figure("Decision curves by site", needs=("predictions", "bags", "baselines", "metrics"), chapter="use", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Net benefit over the range of thresholds, with a pointwise band for the main model."""
    scopes = main_scopes(results, both=True)
    picture, panels = site_panels(list(scopes), "Net benefit a patient", foot_mm=6)
    main = results.experiments[results.main]
    colour, name = strategy_colour(main.strategy.name), strategy_name(main.strategy.name)
    values, bottom, top = [], -0.1, 0.1
    for axes, (site, scope) in zip(panels, scopes.items(), strict=True):
        everybody = results.curve("net_benefit_of_all", results.main, scope)["y"]
        axes.plot(THRESHOLDS, everybody, color=FAINT, linewidth=2.6, solid_capstyle="butt", label="Everybody")
        axes.axhline(0, color=SOFT, linewidth=0.8, linestyle=(0, (4, 2)), label="Nobody")
        curve = results.curve("net_benefit", results.main, scope)
        axes.fill_between(THRESHOLDS, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        clinical = _clinical(results, site)
        if clinical is not None:
            look = baseline_arm(results, "clinical_pooled")
            folder = ("baselines", results.endpoint)
            other = results.curve("net_benefit", "clinical_pooled", clinical, *folder)["y"]
            axes.plot(THRESHOLDS, other, color=look.colour, linewidth=1.1, label=look.name)
            values.append(
                pd.DataFrame({"site": site, "model": look.name, "threshold": THRESHOLDS, "net_benefit": other})
            )
        axes.plot(THRESHOLDS, curve["y"], color=colour, linewidth=1.5, label=name)
        title_of_site(axes, site, f"n = {len(scope.table)}")
        bottom, top = min(bottom, float(curve["low"].min())), max(top, float(curve["high"].max()))
        axes.set(xlim=(0, THRESHOLDS[-1] + 0.02), xlabel="Threshold", xticks=[0, 0.2, 0.4, 0.6])
        stated = {"site": site, "threshold": THRESHOLDS}
        bounds = {"low": curve["low"], "high": curve["high"]}
        values.append(pd.DataFrame({**stated, "model": name, "net_benefit": curve["y"], **bounds}))
        values.append(pd.DataFrame({**stated, "model": "Everybody", "net_benefit": everybody}))
    for axes in panels:  # of "everybody" what lies below every band is cut off
        axes.set_ylim(bottom - 0.02, top + 0.02)
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


def _clinical(results: Results, site: str) -> Scope | None:
    """The pooled clinical baseline at a site, on the very patients that the slide model has there."""
    try:
        there = results.baseline_scopes(results.endpoint).get("clinical_pooled", [])
    except Absent:
        return None
    return next((scope for scope in there if scope.site == site and scope.split != "transfer"), None)
