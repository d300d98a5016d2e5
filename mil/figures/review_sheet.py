"""A blind review for pathologists: shuffled tiles of high and low attention, a table to fill, and the key apart from it.

`figures/review_sheet.{site}/` gets `{site}_001.png`, ..., `sheet.csv` (a row a tile, a column a pattern, to be filled with 0 or 1)
and `key.csv`, which a reviewer must not see. Filled sheets are named in `figures.reviews`.
"""

import cv2
import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.registry import Drawn, figure
from mil.figures.style import DOUBLE_MM, FAINT, SOFT, bare_image, new_figure
from mil.figures.top_bottom_tiles import all_tiles, pick
from mil.results.results import Results
from mil.rng import rng
from mil.tables import csv_text

SIZE_PX = 224
COLUMNS = 8


@figure(
    "Blind review sheet", needs=("attention", "bags", "thumbnails"), per_site=True, chapter="attention", number="F4c"
)
def draw(results: Results, spec: FiguresSpec, site: str) -> Drawn:
    """The contact sheet of the tiles, numbered as in the table to fill; half are of each kind, in random order."""
    tiles = all_tiles(results, site)
    chosen = [(kind, tile) for kind in ("top", "bottom") for tile in pick(tiles, kind, spec.review_tiles)]
    order = rng(results.config.metrics.seed, "review", site).permutation(len(chosen))
    chosen = [chosen[number] for number in order]
    pixels = results.files.tile_pixels(site, [(tile.slide_id, tile.x, tile.y) for _, tile in chosen], SIZE_PX)
    names = [f"{site}_{number:03d}" for number in range(1, len(chosen) + 1)]
    images = [pixels[tile.slide_id, tile.x, tile.y] for _, tile in chosen]
    files = {f"{name}.png": _png(image) for name, image in zip(names, images, strict=True)}
    sheet = pd.DataFrame({"tile": names, **dict.fromkeys(spec.patterns, ""), "remark": ""})
    key = pd.DataFrame(
        [{"tile": name, "kind": kind, **vars(tile)} for name, (kind, tile) in zip(names, chosen, strict=True)]
    )
    files["sheet.csv"] = csv_text(sheet).encode()
    files["key.csv"] = csv_text(key).encode()
    rows = -(-len(names) // COLUMNS)
    picture = new_figure(DOUBLE_MM, rows * (DOUBLE_MM / COLUMNS + 4.5))
    panels = picture.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, name, image in zip(panels, names, images, strict=False):
        bare_image(axes, image, frame=FAINT)
        axes.set_xlabel(name.rsplit("_", 1)[1], fontsize=6, color=SOFT, labelpad=1.5)
    for axes in panels[len(names) :]:
        axes.axis("off")
    side_um = results.config.tiles.size_px * results.config.tiles.mpp
    return Drawn(
        figure=picture,
        data=sheet,
        files=files,
        n=f"{len(names)} tiles of {len({tile.patient_id for _, tile in chosen})} patients of site {site}",
        caption=(
            f"Tiles of {side_um:g} µm with the highest and the lowest attention, as many of each, in random order: what pathologists are shown without "
            "being told which is which. The tiles, the sheet to fill and the key lie in figures/review_sheet.<site>/; once filled sheets are named under "
            "figures.reviews, their statistics are a figure of their own."
        ),
    )


def _png(pixels: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".png", pixels[..., ::-1])
    return encoded.tobytes()
