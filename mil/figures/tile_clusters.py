"""Kinds of tile: clusters of features, the tiles nearest to each centre, and where positive patients have more of them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats
from sklearn.cluster import MiniBatchKMeans

from mil.config import FiguresSpec
from mil.figures.cohort_table import p_text
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import CLASS_COLOURS, DOUBLE_MM, FAINT, SOFT, bare_image, chance_line, light_grid, new_figure
from mil.figures.top_bottom_tiles import read_tiles
from mil.metrics.multiplicity import benjamini_hochberg
from mil.rng import rng

TILES_A_PATIENT = 200
EXEMPLARS = 6


@figure("Clusters of tiles", needs=("bags", "features", "attention", "thumbnails"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a cluster: exemplars of different patients, its share in positive and negative patients, its attention."""
    tiles, features = _sample(results)
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    fitted = MiniBatchKMeans(spec.clusters, random_state=0, n_init=5, batch_size=2048).fit(scaled)
    tiles["cluster"] = fitted.labels_
    tiles["distance"] = np.linalg.norm(scaled - fitted.cluster_centers_[fitted.labels_], axis=1)
    table, shares = _enrichment(tiles)
    order = table.sort_values("difference", ascending=False).index.tolist()
    exemplars = {cluster: _exemplars(tiles[tiles["cluster"] == cluster]) for cluster in order}
    pixels = {}
    for site in results.sites:
        wanted = [
            (r.slide_id, int(r.x), int(r.y))
            for part in exemplars.values()
            for r in part[part["site"] == site].itertuples()
        ]
        pixels |= read_tiles(results, site, wanted, size_px=112) if wanted else {}
    picture = new_figure(DOUBLE_MM, 16 + 19 * len(order))
    grid = picture.add_gridspec(len(order), EXEMPLARS + 2, width_ratios=[1] * EXEMPLARS + [2.6, 1.5])
    for row, cluster in enumerate(order):
        _tiles_row(picture, grid, row, exemplars[cluster], pixels, f"{chr(65 + row)}")
    _shares(picture.add_subplot(grid[:, EXEMPLARS]), shares, table, order)
    _attention(picture.add_subplot(grid[:, EXEMPLARS + 1]), tiles, order)
    table.insert(0, "name", [chr(65 + order.index(cluster)) for cluster in table.index])
    return Drawn(
        figure=picture,
        data=table.sort_values("name").reset_index(drop=True),
        n=f"{len(tiles):,} tiles of {tiles['patient_id'].nunique()} patients",
        caption=(
            f"Up to {TILES_A_PATIENT} tiles a patient in {spec.clusters} clusters (k-means on standardised features of "
            f"{results.experiments[results.main].encoder}); the tiles nearest to each centre, one a patient. Middle: share of the cluster in a patient's tiles, a dot a patient, "
            "with medians; p: Mann-Whitney test, Benjamini and Hochberg's correction. Right: attention relative to the mean of the patient's tiles (median and quartiles over "
            "tiles). Clusters were found without labels."
        ),
    )


def _sample(results: Results) -> tuple[pd.DataFrame, np.ndarray]:
    encoder = results.experiments[results.main].encoder
    if not results.has_features(encoder):
        raise Absent(f"features {encoder} are not on this machine")
    parts, features = [], []
    for bag in results.bags(results.endpoint).itertuples():
        slides = str(bag.slides).split(";")
        count = results.bag_tiles(bag.site, results.main, bag.patient_id)
        for slide in slides:
            coords, values = results.features(bag.site, encoder, slide)
            attention = np.full(len(coords), np.nan)
            if results.has_attention(bag.site, results.main, slide):
                attention = results.attention(bag.site, results.main, slide)[1].astype(float) * count
            order = rng(0, "clusters", slide).permutation(len(coords))[: TILES_A_PATIENT // len(slides)]
            frame = pd.DataFrame({"x": coords[order, 0], "y": coords[order, 1], "attention": attention[order]})
            parts.append(frame.assign(slide_id=slide, patient_id=bag.patient_id, site=bag.site, label=bag.label))
            features.append(values[order].astype(np.float32))
    return pd.concat(parts, ignore_index=True), np.concatenate(features)


def _enrichment(tiles: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """By cluster: tiles, median shares in positive and negative patients, their difference, p; and every patient's shares."""
    shares = pd.crosstab(tiles["patient_id"], tiles["cluster"], normalize="index")
    labels = tiles.groupby("patient_id")["label"].first().reindex(shares.index)
    rows = []
    for cluster in shares.columns:
        positive, negative = (shares.loc[labels == label, cluster].to_numpy() for label in (1, 0))
        p = float(stats.mannwhitneyu(positive, negative).pvalue) if len(positive) and len(negative) else np.nan
        middle = [float(np.median(part)) if len(part) else np.nan for part in (positive, negative)]
        rows.append((int((tiles["cluster"] == cluster).sum()), *middle, float(positive.mean() - negative.mean()), p))
    columns = ["tiles", "median_positive", "median_negative", "difference", "p"]
    table = pd.DataFrame(rows, columns=columns, index=shares.columns)
    table["p_adjusted"] = benjamini_hochberg(table["p"].to_numpy())
    return table, shares.assign(label=labels)


def _exemplars(tiles: pd.DataFrame) -> pd.DataFrame:
    nearest = tiles.sort_values(["distance", "slide_id", "x", "y"])
    one_a_patient = nearest[~nearest["patient_id"].duplicated()]
    return pd.concat([one_a_patient, nearest.drop(one_a_patient.index)]).head(EXEMPLARS)


def _tiles_row(picture, grid, row: int, chosen: pd.DataFrame, pixels: dict, name: str) -> None:
    for column, tile in enumerate(chosen.itertuples()):
        axes = picture.add_subplot(grid[row, column])
        bare_image(axes, pixels[tile.slide_id, int(tile.x), int(tile.y)], frame=FAINT)
        if column == 0:
            axes.set_ylabel(name, rotation=0, fontsize=8, fontweight=700, labelpad=8, va="center")


def _shares(axes: Axes, shares: pd.DataFrame, table: pd.DataFrame, order: list[int]) -> None:
    light_grid(axes, "x")
    for row, cluster in enumerate(order):
        for label, offset in ((1, -0.17), (0, 0.17)):
            values = shares.loc[shares["label"] == label, cluster].to_numpy()
            jitter = rng(0, "jitter", cluster, label).uniform(-0.1, 0.1, len(values))
            axes.plot(
                values,
                row + offset + jitter,
                "o",
                color=CLASS_COLOURS[label],
                markersize=2,
                alpha=0.5,
                markeredgewidth=0,
            )
            if len(values):
                axes.vlines(
                    np.median(values),
                    row + offset - 0.14,
                    row + offset + 0.14,
                    color=CLASS_COLOURS[label],
                    linewidth=1.8,
                )
        p = p_text(float(table.loc[cluster, "p_adjusted"]))
        axes.text(
            0.99,
            row - 0.34,
            f"p {p}" if p.startswith("<") else f"p = {p}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            fontsize=6,
            color=SOFT,
        )
    for label, name in ((1, "positive"), (0, "negative")):
        axes.plot([], [], "o", color=CLASS_COLOURS[label], markersize=3.5, label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes.set(ylim=(len(order) - 0.5, -0.5), yticks=[], xlabel="Share of a patient's tiles")
    axes.set_xlim(left=0)


def _attention(axes: Axes, tiles: pd.DataFrame, order: list[int]) -> None:
    light_grid(axes, "x")
    chance_line(axes, vertical=True)
    axes.lines[-1].set_xdata([1, 1])
    for row, cluster in enumerate(order):
        values = tiles.loc[tiles["cluster"] == cluster, "attention"].dropna().to_numpy()
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.plot([low, high], [row, row], color=SOFT, linewidth=1.4)
            axes.plot(middle, row, "o", color=SOFT, markersize=4)
    axes.set(ylim=(len(order) - 0.5, -0.5), yticks=[], xlabel="Attention")
    axes.set_xlim(left=0)
