"""Kinds of tile and response: the share of every cluster in positive and in negative patients."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.cohort_table import p_words
from mil.figures.registry import Drawn, figure
from mil.figures.style import CLASS_COLOURS, MIDDLE_MM, SOFT, dots, light_grid, new_figure
from mil.results.results import Results
from mil.rng import rng


@figure("Clusters of tiles: enrichment", needs=("bags", "baselines"), chapter="attention", number="ED6")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a cluster, a dot a patient."""
    table = results.about_features(results.endpoint, "clusters")
    table["p_adjusted"] = pd.to_numeric(table["p_adjusted"], errors="coerce")  # blank where one class is missing
    shares = results.about_features(results.endpoint, "cluster_shares")
    picture = new_figure(MIDDLE_MM + 15, 20 + 10 * len(table))
    axes = picture.subplots()
    light_grid(axes, "x")
    for number, row in enumerate(table.itertuples()):
        for label, offset in ((1, -0.17), (0, 0.17)):
            values = shares.loc[shares["label"] == label, f"cluster{row.cluster}"].to_numpy()
            jitter = rng(0, "jitter", number, label).uniform(-0.1, 0.1, len(values))
            height, colour = number + offset, CLASS_COLOURS[label]
            dots(axes, values, height + jitter, colour)
            if len(values):
                axes.vlines(np.median(values), height - 0.14, height + 0.14, color=colour, linewidth=2)
        said = p_words(float(row.p_adjusted))  # type: ignore[arg-type]
        axes.text(
            1.0, number, said, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=6.3, color=SOFT
        )
    for label, name in ((1, "positive"), (0, "negative")):
        axes.plot([], [], "o", color=CLASS_COLOURS[label], markersize=3.5, label=name)
    picture.legend(loc="outside upper right", ncols=2)
    axes.set_yticks(range(len(table)), [cluster_name(int(cluster)) for cluster in table["cluster"]], fontweight=700)
    axes.set(ylim=(len(table) - 0.5, -0.5), xlabel="Share of a patient's tiles")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.tick_params(axis="y", length=0)
    return Drawn(
        figure=picture,
        data=pd.concat([table.assign(kind="cluster"), shares.assign(kind="patient")], ignore_index=True),
        n=f"{len(shares)} patients",
        caption=(
            f"Share of each of {len(table)} clusters of tiles (k-means on features of {results.experiments[results.main].encoder}, standardised within each site, "
            "without labels) in the tiles of positive and of negative patients; dots are patients, lines medians. p: Mann-Whitney test with Benjamini and Hochberg's "
            f"correction.{_where(results)}"
        ),
    )


def _where(results: Results) -> str:
    """Where tiles of the clusters are shown; '' where all sites joined with features alone, so that there are none."""
    return " The tiles are in the next figure." if set(results.sites) - set(results.config.slides.features) else ""


def cluster_name(number: int) -> str:
    """A, B, C, ... from the cluster that positive patients have most of, compared with negative ones."""
    return chr(ord("A") + number)
