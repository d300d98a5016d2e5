"""From a slide of this run to its score: slide, tiles, features, attention and the chance that comes out."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from mil.config import FiguresSpec
from mil.figures.arms import input_name
from mil.figures.heatmaps import ShownSlide, choose, draw_attention, scale_of, show
from mil.figures.registry import Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    HAIR,
    INK,
    SOFT,
    bare_image,
    new_figure,
    site_colour,
    strategy_colour,
    strategy_name,
)
from mil.results.results import Absent, Results

GRID = 3
ROWS, COLUMNS = 48, 64
FEATURES_ASPECT = 0.9


@figure(
    "The pipeline on a slide of this run",
    needs=("attention", "predictions", "bags", "thumbnails", "features"),
    per_site=True,
    chapter="cohort",
    number="F2a",
)
def draw(results: Results, spec: FiguresSpec, site: str) -> Drawn:
    """Five steps from left to right on the site's positive patient with the highest score."""
    chosen = choose(results, site, 1)[0]
    slide = show(results, site, *chosen)
    # as wide as high times the ratio of its sides, so that all panels have one height
    across = float(np.clip(slide.pixels.shape[1] / slide.pixels.shape[0], 0.5, 2.5))
    tiles = (across, across, 1.0, FEATURES_ASPECT, across)
    picture = new_figure(DOUBLE_MM, (DOUBLE_MM - 16) / sum(tiles) + 13)
    panels = picture.subplots(1, 5, width_ratios=tiles)
    for axes in (panels[0], panels[1], panels[4]):
        bare_image(axes, slide.pixels)
    colour = site_colour(site, results.sites)
    squares = [Rectangle((x, y), w, h) for x, y, w, h in slide.tiles]
    panels[1].add_collection(
        PatchCollection(squares, facecolor=(*to_rgb(colour), 0.12), edgecolor=colour, linewidth=0.3)
    )
    order = np.argsort(-slide.attention, kind="stable")
    _montage(panels[2], results, site, slide.slide_id, slide.coords[order[: GRID * GRID]])
    width, matrix = _features(panels[3], results, site, slide.slide_id, order)
    draw_attention(panels[4], slide, scale_of([slide])[0])
    heads = ("Slide", "Tissue, tiles", "Tiles", "Features", "Attention")
    aside = (
        f"{results.files.geometry(site, slide.slide_id)['mpp']:.4g} µm a pixel", f"{len(slide.coords):,} tiles of "
        f"{results.config.tiles.size_px * results.config.tiles.mpp:g} µm", f"{results.config.tiles.size_px} px each",
        f"{width} numbers a tile", f"score {slide.score:.2f}",
    )  # fmt: skip
    for axes, head, words in zip(panels, heads, aside, strict=True):
        axes.set_title(head, loc="center")
        axes.set_anchor("N")
        axes.set_xlabel(words, fontsize=6.5, color=SOFT)
    experiment = results.experiments[results.main]
    panels[4].xaxis.label.set_color(strategy_colour(experiment.strategy.name))
    return Drawn(
        figure=picture,
        data=pd.concat([_tiles(slide), matrix], ignore_index=True),
        n=f"slide {slide.slide_id} of site {site}",
        caption=(
            f"The pipeline on slide {slide.slide_id} ({_chosen(slide)} at site {site}): tissue is found and cut into "
            f"tiles, a frozen encoder turns each tile into numbers (shown: a sample of tiles, those with the highest attention on top), and "
            f"{strategy_name(experiment.strategy.name)} ({input_name(experiment)}) weighs the tiles and gives the patient's score. The tiles "
            f"shown are the {min(GRID * GRID, len(slide.coords))} with the highest attention."
        ),
    )


def _chosen(slide: ShownSlide) -> str:
    if slide.label is None:
        return "the patient with the highest score; no patient of the site has a label"
    if slide.label:
        return "the positive patient with the highest score"
    return "the negative patient with the lowest score; no positive one has attention"


def _tiles(slide: ShownSlide) -> pd.DataFrame:
    tiles = pd.DataFrame({"x": slide.coords[:, 0], "y": slide.coords[:, 1], "attention": slide.attention})
    return tiles.assign(kind="tile", slide_id=slide.slide_id)


def _montage(axes: Axes, results: Results, site: str, slide_id: str, corners: np.ndarray) -> None:
    if not len(corners):
        raise Absent(f"slide {slide_id} has no tile")
    read = results.files.tile_pixels(site, [(slide_id, int(x), int(y)) for x, y in corners], size_px=96)
    tiles = list(read.values())
    gap, side = 6, 96
    rows = -(-len(tiles) // GRID)
    canvas = np.full((rows * (side + gap) - gap, GRID * (side + gap) - gap, 3), 255, np.uint8)
    for number, pixels in enumerate(tiles):
        y, x = divmod(number, GRID)
        canvas[y * (side + gap) : y * (side + gap) + side, x * (side + gap) : x * (side + gap) + side] = pixels
    bare_image(axes, canvas, frame="white")


def _features(axes: Axes, results: Results, site: str, slide_id: str, order: np.ndarray) -> tuple[int, pd.DataFrame]:
    """Standardised features of a sample of tiles, by attention; returns the encoder's width and what is shown."""
    _, features = results.files.features(site, results.experiments[results.main].encoder, slide_id)
    features = features.astype(np.float64)
    rows = order[np.linspace(0, len(order) - 1, min(ROWS, len(order))).astype(int)]
    columns = np.linspace(0, features.shape[1] - 1, min(COLUMNS, features.shape[1])).astype(int)
    shown = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    shown = shown[np.ix_(rows, columns)]
    axes.imshow(shown, cmap="PuOr", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_box_aspect(1 / FEATURES_ASPECT)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(HAIR)
    axes.set_ylabel("tiles", fontsize=6, color=INK)
    y, x = np.indices(shown.shape)
    values = {"kind": "feature", "row": y.ravel(), "column": columns[x.ravel()], "value": shown.ravel().round(3)}
    return features.shape[1], pd.DataFrame(values)
