"""How many patients, and how many tiles a patient, an AUROC takes: a quick model on the mean of the features."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.registry import Drawn, figure
from mil.figures.style import INK, MIDDLE_MM, chance_line, letters, light_grid, new_figure
from mil.results.results import Absent, Results


@figure("Patients, tiles and AUROC", needs=("bags", "baselines"), chapter="doubts", number="ED5")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """AUROC within external sites against the number of training patients, and of tiles drawn from every bag."""
    if not results.external_sites:
        raise Absent("there is no external site with labels to test on")
    patients = results.about_features(results.endpoint, "patients_curve")
    tiles = results.about_features(results.endpoint, "tiles_curve")
    picture = new_figure(MIDDLE_MM + 20, 58)
    panels = picture.subplots(1, 2, sharey=True)
    _curve(panels[0], patients, "Training patients")
    _curve(panels[1], tiles, "Tiles a patient")
    panels[1].set_xscale("log", base=2)
    ticks = sorted(set(tiles["size"]))[::2]
    panels[1].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panels[1].minorticks_off()
    panels[0].set(
        ylabel="AUROC within external sites",
        ylim=(min(0.4, patients["auroc"].min(), tiles["auroc"].min()) - 0.02, 1.02),
    )
    letters(panels)
    encoder = results.experiments[results.main].encoder
    outside = (results.bags(results.endpoint)["role"] == "external").sum()
    return Drawn(
        figure=picture,
        data=pd.concat([patients.assign(of="patients"), tiles.assign(of="tiles")], ignore_index=True),
        n=f"{int(outside)} external patients, {patients['draw'].nunique()} draws a point",
        caption=(
            "a, training patients drawn within site and label; b, tiles drawn from every bag, in training and test. The model is a ridge "
            f"regression on the mean of a patient's features ({encoder}), pooled over the training sites: quick, so that it can be trained often, and no "
            "substitute for the main model. Line: mean over draws; band: the middle 80 % of draws, which says how draws vary and leaves out that "
            "external patients might have been others."
        ),
    )


def _curve(axes: Axes, table: pd.DataFrame, label: str) -> None:
    light_grid(axes)
    chance_line(axes)
    by_size = table.groupby("size")["auroc"]
    sizes: Sequence[float] = list(by_size.groups)
    axes.fill_between(sizes, by_size.quantile(0.1), by_size.quantile(0.9), color=INK, alpha=0.12, linewidth=0)
    axes.plot(sizes, by_size.mean(), "o-", color=INK, markersize=3)
    axes.set_xlabel(label)
