"""Pens drawn over pictures of slides, for tests and `benchmarks/pens.py`."""

import cv2
import numpy as np

from mil.tissue.contrast import glass_of
from mil.tissue.ink import ink

PENS = {
    "red": [(215, 20, 40), (190, 30, 50), (230, 60, 70)],
    "green": [(20, 140, 60), (0, 110, 70), (60, 160, 90)],
    "blue": [(20, 60, 200), (40, 90, 220), (30, 40, 140), (10, 20, 90)],
    "purple": [(120, 30, 150), (90, 20, 130)],
    "black": [(25, 25, 30), (45, 45, 48), (10, 10, 10)],
}
"""Colours (red, green, blue) of opaque ink."""


def with_ink(
    pixels: np.ndarray, share: np.ndarray, colour: np.ndarray, opacity: float, noise: np.ndarray | float = 0.0
) -> np.ndarray:
    """The picture under ink that covers `opacity` of what lies under it, as JPEG: `share` of each pixel, (h, w), is ink; the camera's
    `noise` is added."""
    weight = opacity * share[..., None]
    mixed = np.clip(np.rint((1 - weight) * pixels + weight * colour + noise), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", mixed[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


def inked(pixels: np.ndarray) -> np.ndarray:
    """Where a picture of 8 microns per pixel has ink of any colour, bool (h, w)."""
    return np.any(ink(pixels, glass_of(pixels)[0], 8.0), axis=0)
