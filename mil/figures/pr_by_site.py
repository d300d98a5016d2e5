"""Precision and recall of local, pooled and federated models, one panel a site."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import arms_by_site, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import legend_under, site_panels, title_of_site, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import FAINT
from mil.results.results import Results


@figure("Precision and recall by site", needs=("predictions", "bags", "metrics"), chapter="use", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Every arm of the main experiment's family at every site; the dashed line is the share of positives."""
    by_site = arms_by_site(results)
    most = max(len(arms) for arms in by_site.values())
    picture, panels = site_panels(list(by_site), "Precision", below_mm=1 + 3.4 * most)
    values, shown = [], []
    for axes, (site, arms) in zip(panels, by_site.items(), strict=True):
        share = float(arms[0][1].labels.mean())
        for arm, scope in arms:
            curve = results.curve("precision_recall", arm.experiment, scope)
            shown.append(results.measured_row(arm.experiment, scope, "auprc"))
            area, low, high = shown[-1][["value", "low", "high"]]
            label = f"{arm.name}  {with_interval(area, low, high)}"
            recall, precision = np.append(0.0, curve["x"]), np.append(curve["y"].iloc[0], curve["y"])
            axes.plot(recall, precision, drawstyle="steps-pre", color=arm.colour, linestyle=arm.line, label=label)
            stated = {"site": site, "experiment": arm.experiment, "trained_on": arm.trained_on}
            summary = {"average_precision": area, "low": low, "high": high, "prevalence": share}
            values.append(pd.DataFrame({"recall": recall, "precision": precision}).assign(**stated, **summary))
        axes.axhline(share, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
        title_of_site(axes, site, f"{share:.0%} of {len(arms[0][1].table)} positive")
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.02), xlabel="Recall", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        legend_under(axes)
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=f"{sum(len(arms[0][1].table) for arms in by_site.values())} patients at {len(by_site)} sites",
        caption=(
            f"Precision and recall of {input_name(main)} for {main.endpoint}. In the legends the average precision "
            f"{with_intervals(pd.DataFrame(shown), results.config.metrics.confidence)}, the area under the steps; dashed: the share of positives, which a model that knows nothing reaches."
        ),
    )
