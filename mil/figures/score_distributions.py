"""The main model's scores of positive and negative patients, site by site."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import input_name, main_scopes
from mil.figures.layout import name_sites
from mil.figures.registry import Drawn, figure
from mil.figures.style import CLASS_COLOURS, DOUBLE_MM, INK, dots, light_grid, new_figure, strategy_name
from mil.results.results import Results
from mil.rng import rng


@figure("Scores of positive and negative patients", needs=("predictions", "bags"), chapter="use", number="F3c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A dot a patient, a box a class and site."""
    scopes = main_scopes(results)
    width = min(DOUBLE_MM, 30 + 38 * len(scopes))
    picture = new_figure(width, 66 if len(scopes) < 6 else 78)
    axes = picture.subplots()
    light_grid(axes)
    values = []
    for column, (site, scope) in enumerate(scopes.items()):
        for label, offset in ((0, -0.19), (1, 0.19)):
            scores = scope.scores[scope.labels == label]
            if not len(scores):
                continue
            jitter = rng(0, "jitter", site, label).uniform(-0.11, 0.11, len(scores))
            dots(axes, column + offset + jitter, scores, CLASS_COLOURS[label])
            low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
            axes.vlines(column + offset, low, high, color=INK, linewidth=1)
            axes.hlines(middle, column + offset - 0.13, column + offset + 0.13, color=INK, linewidth=1.6)
        values.append(scope.table)
    name_sites(axes, list(scopes), [f"n = {len(scope.table)}" for scope in scopes.values()], room_mm=width - 14)
    axes.set(ylim=(-0.02, 1.02), ylabel="Score")
    for label, name in ((1, "positive"), (0, "negative")):
        axes.plot([], [], "o", color=CLASS_COLOURS[label], markersize=4, label=name)
    picture.legend(loc="outside upper right", ncols=2)
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=", ".join(f"{site} {len(scope.table)}" for site, scope in scopes.items()),
        caption=(
            f"Scores of {strategy_name(main.strategy.name)}, {input_name(main)} by label ({main.endpoint}) and site, a dot a patient; lines: median and "
            "quartiles. Training sites: mean over the repeats' held-out models; external sites: mean over all models."
        ),
    )
