"""ROC curves of every class against the rest, one panel a site."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.endpoints.multiclass import OF_CLASS
from mil.figures.arms import LINES, input_name, main_scopes
from mil.figures.how_made import with_intervals
from mil.figures.layout import legend_under, site_panels, title_of_site, with_interval
from mil.figures.registry import Drawn, figure
from mil.figures.style import SEVERAL_CLASSES, chance_line, strategy_name
from mil.results.results import Results
from mil.statistics.arms import Scope


@figure(
    "ROC curves by class",
    needs=("predictions", "bags", "metrics"),
    endpoints=("multiclass",),
    chapter="performance",
    number="F3c",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """The main experiment at every site: a curve a class, by that class's probability."""
    classes = results.kind.spec.classes
    drawn = main_scopes(results)
    picture, panels = site_panels(list(drawn), "Sensitivity", below_mm=1 + 3.4 * len(classes))
    values = []
    for axes, (site, scope) in zip(panels, drawn.items(), strict=True):
        values += _panel(axes, results, site, scope)
    main = results.experiments[results.main]
    names = [OF_CLASS + name for name in results.kind.spec.classes]
    rows = [results.measured_row(results.main, scope, name) for scope in drawn.values() for name in names]
    shown = pd.DataFrame(rows)
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True) if values else pd.DataFrame(),
        n=", ".join(f"{site} {len(scope.table)}" for site, scope in drawn.items()),
        caption=(
            f"ROC curves of {strategy_name(main.strategy.name)} ({input_name(main)}) for each class of {main.endpoint} against the rest, by site. "
            "Training sites: every patient by models that did not see them. In the legends AUROC "
            f"{with_intervals(shown, results.config.metrics.confidence)}; the curve of held-out patients is of their mean probabilities. A class "
            "without a patient at the site, or with all of them, has none."
        ),
    )


def _panel(axes: Axes, results: Results, site: str, scope: Scope) -> list[pd.DataFrame]:
    chance_line(axes, diagonal=True)
    values, curves = [], results.curve("roc", results.main, scope)
    for number, name in enumerate(results.kind.spec.classes):
        curve = curves.loc[curves["group"] == name, ["x", "y"]]
        again, colour = divmod(number, len(SEVERAL_CLASSES))
        drawn = {"color": SEVERAL_CLASSES[colour], "linestyle": LINES[again % len(LINES)]}
        if curve.empty:
            axes.plot([], [], **drawn, label=f"{name}  not defined")
            continue
        value, low, high = results.measured(results.main, scope, OF_CLASS + name)
        label = f"{name} ({(scope.labels == number).sum()})  {with_interval(value, low, high)}"
        axes.plot(curve["x"], curve["y"], **drawn, label=label)
        curve = curve.rename(columns={"x": "false_positive_rate", "y": "true_positive_rate"})
        values.append(curve.assign(site=site, of_class=name, auroc=value, auroc_low=low, auroc_high=high))
    role = results.config.slides.roles[site]
    title_of_site(axes, site, f"{'trains' if role == 'train' else 'external'}, n = {len(scope.table)}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    legend_under(axes)
    return values
