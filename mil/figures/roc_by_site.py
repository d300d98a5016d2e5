"""ROC curves of local, pooled and federated models, one panel a site."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arms_by_site, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import legend_under, site_panels, title_of_site, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import chance_line
from mil.results.results import Results
from mil.statistics.arms import Scope


@figure("ROC curves by site", needs=("predictions", "bags", "metrics"), chapter="performance", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Every arm of the main experiment's family at every site; the band belongs to the most collaborative one."""
    drawn = arms_by_site(results)
    most = max(len(arms) for arms in drawn.values())
    picture, panels = site_panels(list(drawn), "Sensitivity", below_mm=1 + 3.4 * most)
    values = []
    for axes, (site, arms) in zip(panels, drawn.items(), strict=True):
        values += _panel(axes, results, site, arms)
    patients = sum(len(next(iter(arms))[1].table) for arms in drawn.values())
    main = results.experiments[results.main]
    each = [(arm.experiment, scope) for arms in drawn.values() for arm, scope in arms]
    shown = [results.measured_row(*pair, results.kind.primary.name) for pair in each]
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


def _panel(axes: Axes, results: Results, site: str, arms: list[tuple[Arm, Scope]]) -> list[pd.DataFrame]:
    chance_line(axes, diagonal=True)
    values = []
    for arm, scope in arms:
        drawn = results.curve("roc", arm.experiment, scope)
        value, low, high = results.measured(arm.experiment, scope, results.kind.primary.name)
        label = f"{arm.name}  {with_interval(value, low, high)}"
        axes.plot(drawn["x"], drawn["y"], color=arm.colour, linestyle=arm.line, label=label, drawstyle="default")
        stated = {"site": site, "experiment": arm.experiment, "trained_on": arm.trained_on}
        curve = pd.DataFrame({"false_positive_rate": drawn["x"], "true_positive_rate": drawn["y"]})
        values.append(curve.assign(kind="curve", **stated, auroc=value, auroc_low=low, auroc_high=high))
    last, scope = arms[-1]
    drawn = results.curve("roc_band", last.experiment, scope)
    axes.fill_between(drawn["x"], drawn["low"], drawn["high"], color=last.colour, alpha=0.13, linewidth=0)
    band = pd.DataFrame({"false_positive_rate": drawn["x"], "band_low": drawn["low"], "band_high": drawn["high"]})
    values.append(band.assign(kind="band", site=site, experiment=last.experiment, trained_on=last.trained_on))
    role = results.config.slides.roles[site]
    title_of_site(axes, site, f"{'trains' if role == 'train' else 'external'}, n = {len(scope.table)}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    legend_under(axes)
    return values
