"""The four hospitals of the demo cohort: who trains, how many respond, how they stain and how they scan."""

from dataclasses import dataclass
from typing import Literal

from mil.synthetic.stains import Stain
from mil.synthetic.writing import Scanner

# Optical densities (log10, red green blue) are about those that Macenko's and Ruifrok's papers give for
# haematoxylin (0.65, 0.70, 0.29) and eosin (0.07, 0.99, 0.11), moved apart as laboratories are.


@dataclass(frozen=True)
class SyntheticSite:
    """A hospital."""

    name: str
    role: Literal["train", "external"]
    responders: float
    """Share of patients who respond."""
    stain: Stain
    scanner: Scanner


SITES = (
    SyntheticSite(
        "north", "train", 0.40,
        Stain((0.64, 0.70, 0.31), (0.13, 0.86, 0.44), (0.03, 0.30, 0.80), False, (1.0, 1.0), (244, 243, 245), 0.5),
        Scanner("aperio", mpp=0.25, tile_px=256, quality=80, colour="rgb", downsample=4, levels=3),
    ),
    SyntheticSite(
        "south", "train", 0.47,
        Stain((0.68, 0.67, 0.30), (0.20, 0.78, 0.34), (0.03, 0.30, 0.80), False, (1.05, 0.98), (238, 240, 243), 0.9),
        Scanner("centimetre", mpp=0.2527, tile_px=512, quality=70, colour="ycbcr", downsample=2, levels=5),
    ),
    SyntheticSite(
        "east", "external", 0.33,
        Stain((0.60, 0.74, 0.42), (0.05, 0.78, 0.52), (0.02, 0.15, 0.56), True, (0.95, 0.74), (248, 246, 240), 0.2),
        Scanner("centimetre", mpp=0.5, tile_px=240, quality=85, colour="ycbcr", downsample=2, levels=3),
    ),
    SyntheticSite(
        "west", "external", 0.60,
        Stain((0.58, 0.76, 0.36), (0.11, 0.92, 0.38), (0.03, 0.30, 0.80), False, (0.82, 0.98), (236, 234, 238), 0.0),
        Scanner("inch", mpp=0.5, tile_px=256, quality=60, colour="ycbcr", downsample=4, levels=2),
    ),
)  # fmt: skip
