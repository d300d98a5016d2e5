"""Where the features of a site are that joins with features alone, made by another tool."""

from typing import Literal

from pydantic import Field

from mil.spec import Spec

Layout = Literal["atlaspatch", "clam", "histossl", "marugoto", "slide2vec", "stamp", "trident"]


class FeaturesSpec(Spec):
    """Features of one site, made elsewhere: its slides are not needed, and neither read nor tiled."""

    version: Literal[1] = 1
    layout: Layout
    """The tool that made them."""
    folder: str
    """Folder that holds them; `{encoder}` in it stands for the experiment's encoder. A slide's file is named as its slide_id."""
    encoder: str | None = None
    """The encoder that made them, where the files do not say; none: the `name` of the experiment's encoder."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash of the encoder's weights, where you know it: the site can then join others whose features these weights made,
    and `encoder` counts whatever the files say. None: unknown, and only features of the same tool mix."""
    mpp: float | None = Field(default=None, gt=0)
    """Microns a level-0 pixel of the slides; needed where coordinates are in microns or grid cells."""
    tile_mpp: float | None = Field(default=None, gt=0)
    """Microns a pixel of the tiles, where the files do not say."""
