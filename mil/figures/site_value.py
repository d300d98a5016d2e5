"""What another hospital is worth: AUROC at external sites of models trained on every set of training sites."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import arm, input_name
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import INK, chance_line, light_grid, new_figure
from mil.metrics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE
from mil.metrics.score import primary


@figure("The value of adding a site", needs=("bags", "baselines", "metrics"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A mark a set of training sites: a quick model on mean features, and the main family's own models beside it."""
    training = results.training_sites
    if len(training) < 2 or not results.external_sites:
        raise Absent("it takes two training sites and an external one")
    quick = results.about_features(results.endpoint, "site_value").assign(model="Mean of features", colour=INK)
    table = pd.concat([quick, _main(results)], ignore_index=True)
    names = list(dict.fromkeys(table.sort_values(["sites", "trained_on"])["trained_on"]))
    kinds = list(dict.fromkeys(table["model"]))
    picture = new_figure(min(183.0, 50 + 22 * len(names)), 66)
    axes = picture.subplots()
    light_grid(axes)
    chance_line(axes)
    for number, kind in enumerate(kinds):
        mine = table[table["model"] == kind]
        offset = (number - (len(kinds) - 1) / 2) * 0.16
        places = np.array([names.index(name) for name in mine["trained_on"]]) + offset
        colour = mine["colour"].iloc[0]
        axes.vlines(places, mine["low"], mine["high"], color=colour, linewidth=1.3)
        axes.plot(places, mine["value"], "o" if number else "s", color=colour, markersize=4.2, label=kind)
    counts = results.bags(results.endpoint)["site"].value_counts()
    labels = [
        name.replace("+", " +\n") + f"\nn = {sum(int(counts.get(site, 0)) for site in name.split('+'))}"
        for name in names
    ]
    axes.set_xticks(range(len(names)), labels)
    axes.set(
        xlim=(-0.6, len(names) - 0.4),
        ylim=(min(0.4, float(table["low"].min()) - 0.02), 1.02),
        ylabel="AUROC within external sites",
        xlabel="Trained on",
    )
    picture.legend(loc="outside right upper")
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=table.drop(columns="colour"),
        n=f"{int(results.bags(results.endpoint)['role'].eq('external').sum())} external patients",
        caption=(
            f"AUROC for {main.endpoint} within external sites of models that were trained on each set of training sites: a ridge regression on the mean of the "
            f"features, and {input_name(main)} as trained in this run. Intervals: {results.config.metrics.confidence:.0%}, DeLong, logit scale. "
            "More sites also means more patients."
        ),
    )


def _main(results: Results) -> pd.DataFrame:
    metrics = primary(results.metrics(*results.family()))
    metrics = metrics[(metrics["site"] == EXTERNAL_SITES) & ~metrics["trained_on"].isin([OWN_SITE, ENSEMBLE])]
    rows = []
    for row in metrics.itertuples():
        one = arm(results, str(row.experiment), str(row.trained_on))
        name = one.name.split(",")[0]
        rows.append(
            (row.trained_on, str(row.trained_on).count("+") + 1, name, one.colour, row.value, row.low, row.high)
        )
    return pd.DataFrame(rows, columns=["trained_on", "sites", "model", "colour", "value", "low", "high"])
