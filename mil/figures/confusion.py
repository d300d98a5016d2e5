"""True and likeliest class of every patient, counted: one panel a site."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import input_name, main_scopes
from mil.figures.layout import UPRIGHT_MM, fitted, outer_panels, site_panels, text_mm, title_of_site, width_mm
from mil.figures.registry import Drawn, figure
from mil.figures.style import centred, ink_on, strategy_name, unframed
from mil.results.results import Results
from mil.statistics.arms import Scope

CMAP, NAMES_MM = "Blues", 10.0


@figure(
    "True and predicted classes",
    needs=("predictions", "bags", "metrics"),
    endpoints=("multiclass",),
    chapter="use",
    number="F3c",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Rows are true classes, columns the likeliest ones; the colour is the share of the row."""
    drawn = main_scopes(results)
    classes = results.kind.spec.classes
    longest = min(max(text_mm(name, 6.5) for name in classes), UPRIGHT_MM)
    picture, panels = site_panels(list(drawn), "True class", below_mm=longest)
    data = [_panel(axes, results, site, scope) for axes, (site, scope) in zip(panels, drawn.items(), strict=True)]
    for axes in outer_panels(panels):
        axes.set_yticks(
            range(len(classes)), [fitted(name, NAMES_MM, 6.5)[0] for name in classes], rotation=90, va="center"
        )
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(data, ignore_index=True),
        n=", ".join(f"{site} {len(scope.table)}" for site, scope in drawn.items()),
        caption=(
            f"Patients by their true class of {main.endpoint} and the one that {strategy_name(main.strategy.name)} ({input_name(main)}) gives the "
            "highest mean probability: numbers, and in colour the share of the row. Training sites: by models that did not see the patient. "
            f"Balanced accuracy is the mean of the diagonal's shares (by chance {1 / len(classes):.2f}); it is not defined where a class has no patient."
        ),
    )


def _panel(axes: Axes, results: Results, site: str, scope: Scope) -> pd.DataFrame:
    classes, confusion = results.kind.spec.classes, results.curve("confusion", results.main, scope)
    counts, rows = (confusion[name].to_numpy().reshape(len(classes), -1) for name in ("patients", "y"))
    counts = counts.astype(int)
    axes.imshow(rows, cmap=CMAP, vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        centred(axes, j, i, str(count), fontsize=7, color=ink_on(CMAP, rows[i, j]))
    value = results.measured(results.main, scope, "balanced_accuracy")[0]
    said = f"balanced accuracy {value:.2f}" if np.isfinite(value) else "balanced accuracy not defined"
    title_of_site(axes, site, f"n = {len(scope.labels)}, {said}")
    upright = any(text_mm(name, 6.5) > width_mm(axes) / len(classes) - 1 for name in classes)
    names = [fitted(name, UPRIGHT_MM, 6.5)[0] for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90 if upright else 0)
    axes.set_yticks(range(len(classes)))
    axes.set_xlabel("Likeliest class")
    unframed(axes)
    true, likeliest = (np.array(classes)[indices] for indices in np.indices(counts.shape).reshape(2, -1))
    table = {"site": site, "true": true, "likeliest": likeliest, "patients": counts.ravel(), "share": rows.ravel()}
    return pd.DataFrame(table).assign(balanced_accuracy=value)
