"""Kinds of tile at one site: of every cluster the tiles nearest to its centre, and the attention they get."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.cluster_enrichment import cluster_name
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, FAINT, SOFT, bare_image, light_grid, new_figure
from mil.results.results import Absent, Results

EXEMPLARS = 8
TILE_PX = 112


@figure(
    "Clusters of tiles: exemplars",
    needs=("baselines", "attention", "thumbnails"),
    per_site=True,
    chapter="attention",
    number="ED6",
)
def draw(results: Results, spec: FiguresSpec, site: str) -> Drawn:
    """A row a cluster: exemplars of different patients, then the attention of its tiles."""
    tiles = results.clusters(site, results.endpoint)
    if tiles.empty:
        raise Absent(f"site {site} has no tile in a cluster")
    tiles["attention"] = _attention_of(results, site, tiles)
    clusters = sorted(tiles["cluster"].unique())
    exemplars = {cluster: _nearest(tiles[tiles["cluster"] == cluster]) for cluster in clusters}
    wanted = [(str(row.slide_id), int(row.x), int(row.y)) for part in exemplars.values() for row in part.itertuples()]
    pixels = results.files.tile_pixels(site, wanted, TILE_PX)
    picture = new_figure(DOUBLE_MM, 12 + 17.5 * len(clusters))
    grid = picture.add_gridspec(len(clusters), EXEMPLARS + 1, width_ratios=[1] * EXEMPLARS + [2])
    for number, cluster in enumerate(clusters):
        for column, tile in enumerate(exemplars[cluster].itertuples()):
            axes = picture.add_subplot(grid[number, column])
            bare_image(axes, pixels[str(tile.slide_id), int(tile.x), int(tile.y)], frame=FAINT)
            if column == 0:
                axes.set_ylabel(
                    cluster_name(int(cluster)), rotation=0, fontsize=8, fontweight=700, labelpad=8, va="center"
                )
    _draw_attention(picture.add_subplot(grid[:, EXEMPLARS]), tiles, clusters)
    return Drawn(
        figure=picture,
        data=tiles,
        n=f"{len(tiles):,} tiles of {tiles['patient_id'].nunique()} patients of site {site}",
        caption=(
            "The tiles nearest to each cluster's centre, one a patient as long as there are others. Right: attention relative to the mean of the "
            "patient's tiles, median and quartiles over the sampled tiles."
        ),
    )


def _attention_of(results: Results, site: str, tiles: pd.DataFrame) -> np.ndarray:
    """Attention relative to the patient's mean of every tile; nan where there is none."""
    relative = np.full(len(tiles), np.nan)
    for slide_id, part in tiles.groupby("slide_id"):
        if not results.files.has_attention(site, results.main, str(slide_id)):
            continue
        coords, attention = results.files.attention(site, results.main, str(slide_id))
        by_corner = dict(zip(map(tuple, coords.tolist()), attention.astype(float), strict=True))
        count = results.bag_tiles(site, results.main, str(part["patient_id"].iloc[0]))
        values = [by_corner.get((int(x), int(y)), np.nan) * count for x, y in part[["x", "y"]].to_numpy()]
        relative[tiles.index.get_indexer(part.index)] = values
    return relative


def _nearest(tiles: pd.DataFrame) -> pd.DataFrame:
    nearest = tiles.sort_values(["distance", "slide_id", "x", "y"])
    one_a_patient = nearest[~nearest["patient_id"].duplicated()]
    return pd.concat([one_a_patient, nearest.drop(one_a_patient.index)]).head(EXEMPLARS)


def _draw_attention(axes: Axes, tiles: pd.DataFrame, clusters: list[int]) -> None:
    light_grid(axes, "x")
    axes.axvline(1, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
    for height, cluster in enumerate(clusters):
        values = tiles.loc[tiles["cluster"] == cluster, "attention"].dropna().to_numpy()
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.plot([low, high], [height, height], color=SOFT, linewidth=1.6)
            axes.plot(middle, height, "o", color=SOFT, markersize=4.5)
    axes.set(ylim=(len(clusters) - 0.5, -0.5), yticks=[], xlabel="Attention")
    axes.set_xlim(left=0)
