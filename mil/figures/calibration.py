"""Whether the main model's scores are chances: observed against predicted, one panel a site."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.endpoints.curves import FEWEST_BINS, PATIENTS_A_BIN
from mil.figures.arms import input_name, main_scopes
from mil.figures.how_made import with_intervals
from mil.figures.layout import site_panels, title_of_site, under, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import SOFT, chance_line, site_colour, strategy_name
from mil.results.results import Results
from mil.statistics.calibration import BINS


@figure("Calibration by site", needs=("predictions", "bags", "metrics"), chapter="use", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Share of positives against the mean score in bins of equally many patients, with slope, intercept and error."""
    scopes = main_scopes(results, both=True)
    picture, panels = site_panels(list(scopes), "Share of positives", below_mm=12)
    metrics, values, shown = results.config.metrics, [], []
    for axes, (site, scope) in zip(panels, scopes.items(), strict=True):
        colour = site_colour(site, results.sites)
        chance_line(axes, diagonal=True)
        table, curve = (
            results.curve(name, results.main, scope)[["x", "y", "low", "high", "patients"]].rename(
                columns={"x": "score", "y": "share"}
            )
            for name in ("calibration", "recalibration")
        )
        table = table.astype({"patients": int}).assign(site=site)
        axes.vlines(table["score"], table["low"], table["high"], color=colour, linewidth=0.9)
        axes.plot(table["score"], table["share"], "o", color=colour, markersize=3.5)
        curve = curve[["score", "share"]].assign(site=site)
        axes.plot(curve["score"], curve["share"], color=colour, linewidth=1.2)
        for label, height, up in ((1, 1.0, -0.04), (0, 0.0, 0.04)):
            axes.vlines(scope.scores[scope.labels == label], height, height + up, color=SOFT, linewidth=0.4)
        lines, rows = [], []
        for name, metric in (("Slope", "calibration_slope"), ("Intercept", "calibration_intercept"), ("ECE", "ece")):
            shown.append(results.measured_row(results.main, scope, metric))
            value, low, high = results.measured(results.main, scope, metric)
            rows.append({"site": site, "kind": "statistic", "name": name, "value": value, "low": low, "high": high})
            lines.append(
                f"{name} {with_interval(value, low, high) if np.isfinite([value, low, high]).all() else 'not defined'}"
            )
        axes.text(
            *under(axes), "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=6, linespacing=1.5
        )
        title_of_site(axes, site, f"n = {len(scope.table)}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="Mean score", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        patients = scope.table[["site", "patient_id", "score", "label"]].assign(kind="patient")
        values += [table.assign(kind="bin"), curve.assign(kind="recalibration"), patients, pd.DataFrame(rows)]
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat([part for part in values if len(part)], ignore_index=True),
        n=f"{sum(len(scope.table) for scope in scopes.values())} patients at {len(scopes)} sites",
        caption=(
            f"Calibration of {strategy_name(main.strategy.name)}, {input_name(main)}. Line: logistic recalibration, over the scores that occur. "
            f"Dots: share of positives in up to {BINS} bins of equally many patients (Wilson's {metrics.confidence:.0%} intervals), where "
            f"there are {FEWEST_BINS} bins or more of {PATIENTS_A_BIN} patients. Ticks: each patient's score (positives above). Slope and intercept of the logistic recalibration (1 and 0 are ideal) and expected calibration error "
            f"{with_intervals(pd.DataFrame(shown), metrics.confidence)}. A score is a mean over models."
        ),
    )
