"""The tiles that the model looked at most and least, read from the slides of one site."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.registry import Drawn, figure
from mil.figures.style import CLASS_COLOURS, DOUBLE_MM, FAINT, SOFT, bare_image, new_figure, strategy_name
from mil.results.results import Absent, Results

TILE_PX = 160  # pixels of a tile in the montage, whatever its size in the analysis
PER_PATIENT = 2
ROW_TITLES = {
    ("top", 1): "Highest attention, positive patients",
    ("top", 0): "Highest attention, negative patients",
    ("bottom", 1): "Lowest attention, positive patients",
    ("bottom", 0): "Lowest attention, negative patients",
}


@dataclass(frozen=True)
class Pick:
    """One tile of the montage; `relative` is its attention relative to its bag's mean."""

    slide_id: str
    patient_id: str
    label: int
    x: int
    y: int
    relative: float


@figure(
    "Tiles with the highest and the lowest attention",
    needs=("attention", "bags", "thumbnails"),
    per_site=True,
    chapter="attention",
    number="F4b",
)
def draw(results: Results, spec: FiguresSpec, site: str) -> Drawn:
    """Four rows: highest and lowest attention, in positive and in negative patients; at most two tiles a patient."""
    tiles = all_tiles(results, site)
    picks = {(end, label): pick(tiles[tiles["label"] == label], end, spec.tiles_a_site) for end, label in ROW_TITLES}
    picks = {row: chosen for row, chosen in picks.items() if chosen}
    wanted = [(tile.slide_id, tile.x, tile.y) for chosen in picks.values() for tile in chosen]
    pixels = results.files.tile_pixels(site, wanted, TILE_PX)
    picture, places = _montage(picks, pixels, spec.tiles_a_site)
    experiment = results.experiments[results.main]
    rows = [
        {"row": ROW_TITLES[row], **vars(tile), **places[row, tile]} for row, chosen in picks.items() for tile in chosen
    ]
    side_um = results.config.tiles.size_px * results.config.tiles.mpp
    return Drawn(
        figure=picture,
        data=pd.DataFrame(rows),
        n=f"{len(rows)} tiles of {len({row['patient_id'] for row in rows})} patients of site {site}",
        caption=(
            f"Tiles of {side_um:g} µm, chosen by attention of {strategy_name(experiment.strategy.name)}, "
            f"{input_name(experiment)}, and by nothing else; at most {PER_PATIENT} a patient and row. The number "
            "is the attention relative to the mean of the patient's tiles."
        ),
    )


def all_tiles(results: Results, site: str) -> pd.DataFrame:
    """slide_id, patient_id, label, x, y, relative (attention to the mean of the patient's tiles) of every tile of a site."""
    bags = results.bags(results.endpoint)
    bags = bags[bags["site"] == site]
    if bags.empty:
        raise Absent(f"no patient of site {site} has a label")
    rows = []
    for bag in bags.itertuples():
        read = results.files.bag_attention(site, results.main, bag.slides)
        count = sum(len(attention) for _, _, attention in read)
        for slide, coords, attention in read:
            stated = {"slide_id": slide, "patient_id": bag.patient_id, "label": bag.label}
            x, y = coords.T
            rows.append(pd.DataFrame({**stated, "x": x, "y": y, "relative": attention.astype(float) * count}))
    if not rows:
        raise Absent(f"{results.main} has no attention at site {site}")
    tiles = pd.concat(rows, ignore_index=True)
    if np.ptp(tiles["relative"].to_numpy()) < 1e-6:
        raise Absent(f"{results.main} looks at all tiles alike, so none is highest or lowest")
    return tiles


def pick(tiles: pd.DataFrame, end: str, count: int) -> list[Pick]:
    """The `count` tiles with the highest (`top`) or lowest attention, at most `PER_PATIENT` of one patient."""
    ranked = tiles.sort_values(["relative", "slide_id", "x", "y"], ascending=[end == "bottom", True, True, True])
    chosen = ranked[ranked.groupby("patient_id").cumcount() < PER_PATIENT].head(count)
    return [
        Pick(r.slide_id, r.patient_id, int(r.label), int(r.x), int(r.y), float(r.relative)) for r in chosen.itertuples()
    ]


def _montage(
    picks: dict[tuple[str, int], list[Pick]], pixels: dict[tuple[str, int, int], np.ndarray], columns: int
) -> tuple[Figure, dict[tuple[tuple[str, int], Pick], dict[str, float]]]:
    """The picture, and where each tile lies in it (left, top, wide, high as shares), for links."""
    side = (DOUBLE_MM - 2) / columns
    picture = new_figure(DOUBLE_MM, len(picks) * (side + 6.5))
    panels = picture.subplots(len(picks), columns, squeeze=False)
    for row, (kind, chosen) in zip(panels, picks.items(), strict=True):
        for axes, tile in zip(row, chosen, strict=False):
            bare_image(axes, pixels[tile.slide_id, tile.x, tile.y], frame=FAINT)
            axes.set_xlabel(f"{tile.patient_id}   {tile.relative:.2g}×", fontsize=5.8, color=SOFT, labelpad=1.5)
        for axes in row[len(chosen) :]:
            axes.axis("off")
        row[0].set_title(ROW_TITLES[kind], fontsize=7, color=CLASS_COLOURS[kind[1]])
    picture.draw_without_rendering()
    places = {}
    for row, (kind, chosen) in zip(panels, picks.items(), strict=True):
        for axes, tile in zip(row, chosen, strict=False):
            box = axes.get_position()
            shares = {"left": box.x0, "top": 1 - box.y1, "wide": box.width, "high": box.height}
            places[kind, tile] = {name: round(float(share), 4) for name, share in shares.items()}
    return picture, places
