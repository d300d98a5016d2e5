"""A potential -> collagen: noise smeared along its level lines, wavy, with clefts."""

from dataclasses import dataclass

import cv2
import numpy as np

from mil.synthetic.noise import Field, enlarge, grain, ramp, smooth_noise

FIBRE_MPP = 1.0
CRIMP_UM = 14.0  # collagen is wavy at about this period
CRIMP = 0.40  # radians


@dataclass(frozen=True)
class Fibres:
    """Collagen on the drawing's grid."""

    eosin: Field
    """Deviation 1 around 0: bundles and fibrils."""
    clefts: Field
    """0 in the gaps between bundles, 1 elsewhere."""
    angle: Field
    """Direction in radians (y down), on the layout's grid."""


def draw_fibres(
    flow: Field, layout_um: float, shape: tuple[int, int], looseness: float, stream: np.random.Generator
) -> Fibres:
    """Draw collagen for a flow potential (layout grid) on the drawing's grid of `shape`; loose tissue has more clefts."""
    rise_y, rise_x = np.gradient(cv2.GaussianBlur(flow, (0, 0), 3.0))
    angle = np.arctan2(-rise_x, rise_y).astype(np.float32)  # along the level line
    coarse = (shape[0] // 2, shape[1] // 2)
    length = np.hypot(rise_x, rise_y) + 1e-6
    x, y = (enlarge((part / length).astype(np.float32), coarse) for part in (rise_y, -rise_x))
    crimp = smooth_noise(stream, coarse, CRIMP_UM / FIBRE_MPP, 1) * np.float32(CRIMP)
    cos, sin = np.cos(crimp), np.sin(crimp)
    x, y = x * cos - y * sin, x * sin + y * cos
    fibrils = _smear(grain(stream, coarse), x, y, (0.5, 1, 2, 4, 8))
    bundles = _smear(grain(stream, coarse, 1.6), x, y, (1, 2, 4, 8, 16))
    eosin = np.float32(0.7) * fibrils + np.float32(0.7) * bundles
    where_loose = smooth_noise(stream, coarse, 110, 2) * np.float32(0.55)
    gaps = _smear(grain(stream, coarse, 1.0), x, y, (1, 2, 4, 8))
    clefts = ramp(gaps + where_loose + np.float32(1.85 - looseness), 0.7)
    return Fibres(enlarge(eosin, shape, smoothly=True), np.clip(enlarge(clefts, shape), 0, 1), angle)


def _smear(image: Field, x: Field, y: Field, steps: tuple[float, ...]) -> Field:
    """Mean along the direction (x, y) over twice the steps' sum in pixels, to deviation 1 around 0."""
    rows, columns = image.shape
    at_y, at_x = np.mgrid[:rows, :columns].astype(np.float32)
    for step in steps:
        ahead, aside = x * np.float32(step), y * np.float32(step)
        image = 0.5 * (_at(image, at_x + ahead, at_y + aside) + _at(image, at_x - ahead, at_y - aside))
    image -= image.mean()
    return image / max(float(image.std()), 1e-6)


def _at(image: Field, x: Field, y: Field) -> Field:
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
