"""A slide -> its tiles: corners of the squares of `size_px` at `mpp` that hold tissue, row by row, and what is wrong with each."""

from mil.tiles.contact import contact_sheet, tissue_outliers
from mil.tiles.grid import tile_slide
from mil.tiles.shard import TILES, tile_shard, trident_attributes

__all__ = [
    "TILES",
    "contact_sheet",
    "tile_shard",
    "tile_slide",
    "tissue_outliers",
    "trident_attributes",
]
