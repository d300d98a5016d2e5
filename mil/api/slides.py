"""Regions of a slide in microns."""

import numpy as np

from mil.errors import MilError
from mil.slides.slide import Slide


def read_microns(slide: Slide, x_um: float, y_um: float, width_um: float, height_um: float, mpp: float) -> np.ndarray:
    """Read a region given in microns from the slide's top left corner: uint8 (height_um / mpp, width_um / mpp, 3).

    `mpp` is the resolution of the result in microns per pixel; what lies outside the slide is white. A `MilError` where the
    slide does not say its own resolution; then open it with `open_slide(path, mpp=...)`.
    """
    if slide.mpp_x is None or slide.mpp_y is None:
        raise MilError(f"{slide.path}: no microns per pixel in the file; give them as open_slide(path, mpp=...)")
    if not (mpp > 0 and width_um >= mpp and height_um >= mpp and np.isfinite([x_um, y_um, width_um, height_um]).all()):
        raise MilError(
            f"{slide.path}: a region of {width_um} x {height_um} microns at {x_um}, {y_um} with {mpp} microns per pixel has no pixel; "
            "give finite numbers, sides of one pixel or more"
        )
    size = (round(width_um / mpp), round(height_um / mpp))
    return slide.read_area(x_um / slide.mpp_x, y_um / slide.mpp_y, size, mpp)
