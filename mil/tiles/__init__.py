"""A slide -> its tiles: corners of the squares of `size_px` at `mpp` that hold tissue, row by row, and what is wrong with each."""

from mil.tiles.contact import contact_sheet, tissue_outliers
from mil.tiles.grid import grid, tile_slide
from mil.tiles.shard import TILES, override_of, recipe, tile_shard, trident_attributes
from mil.tiles.tiles import Tiles

__all__ = [
    "TILES",
    "Tiles",
    "contact_sheet",
    "grid",
    "override_of",
    "recipe",
    "tile_shard",
    "tile_slide",
    "tissue_outliers",
    "trident_attributes",
]
