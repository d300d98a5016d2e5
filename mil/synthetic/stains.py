"""Stain maps -> pixels, as one hospital's laboratory and scanner give them: Beer-Lambert in optical density."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mil.synthetic.drawing import Stained


@dataclass(frozen=True)
class Stain:
    """A laboratory's dyes: optical density (log10) of red, green and blue for one unit of each, and the glass."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    yellow: tuple[float, float, float]
    saffron: bool
    """Whether collagen takes up the yellow (HES, as French laboratories stain)."""
    strength: tuple[float, float]
    """Of haematoxylin and of eosin; slides scatter around it."""
    glass: tuple[int, int, int]
    """RGB of empty glass."""
    sharpening: float
    """Of the scanner's own software; 0 is none."""


def section(stain: Stain, stream: np.random.Generator) -> Stain:
    """One section's stain: strength and hue scatter around its laboratory's."""
    strength = np.array(stain.strength) * np.exp(stream.normal(0, (0.07, 0.10)))
    haematoxylin, eosin = (np.array(dye) + stream.normal(0, 0.015, 3) for dye in (stain.haematoxylin, stain.eosin))
    return replace(
        stain, haematoxylin=tuple(haematoxylin), eosin=tuple(eosin), strength=(float(strength[0]), float(strength[1]))
    )


def colour(stained: Stained, stain: Stain) -> np.ndarray:
    """RGB, uint8 (height, width, 3), of a stained piece."""
    yellow = 1.0 if stain.saffron else 0.25
    channels = []
    for channel in range(3):
        density = stained.haematoxylin * np.float32(stain.strength[0] * stain.haematoxylin[channel])
        density += stained.eosin * np.float32(stain.strength[1] * stain.eosin[channel])
        density += stained.yellow * np.float32(yellow * stain.yellow[channel])
        density *= np.float32(-np.log(10))
        channels.append(cv2.exp(density) * np.float32(stain.glass[channel]))
    light = cv2.merge(channels)
    if stain.sharpening > 0:
        light += np.float32(stain.sharpening) * (light - cv2.GaussianBlur(light, (0, 0), 1.2))
    return np.clip(light, 0, 255, out=light).round().astype(np.uint8)
