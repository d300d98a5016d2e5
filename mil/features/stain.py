"""Stain normalisation of H&E: a slide's stains are found on a sample of its tiles, then every tile is brought to a target's.

Macenko: Macenko et al. 2009 (doi 10.1109/ISBI.2009.5193250), target as in their code. Reinhard: Reinhard et al. 2001
(doi 10.1109/38.946629), in the colour space of Ruderman et al. 1998 on RGB from 0 to 255, target of HistomicsTK's
documentation (a slide of TCGA-BRCA, Amgad et al. 2019).
"""

from typing import Literal

import numpy as np
import torch

from mil.errors import SlideError
from mil.features.plan import Work
from mil.slides.slide import Reading, open_slide

Method = Literal["macenko", "reinhard"]
SAMPLE_TILES = 32
LIGHT = 240.0  # transmitted light without tissue, as in Macenko's code
FAINTEST = 0.15  # optical density below which a pixel says nothing of stains
PERCENTILE = 1.0  # robust extremes of the angles
TARGET_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
TARGET_STRENGTH = np.array([1.9705, 1.0308])
TARGET_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
TARGET_SD = np.array([0.6135447, 0.10989545, 0.0286032])
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
DARKEST = np.finfo(np.float64).eps  # black has a logarithm too
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])


def estimate(method: Method, work: Work) -> np.ndarray:
    """What `Stain` needs to know of a slide, from a sample of its tiles; `SlideError` where no stain is found."""
    tiling = work.tiling
    places = np.unique(np.linspace(0, len(tiling.coords) - 1, SAMPLE_TILES).round().astype(int))
    how = Reading(**dict(tiling.reading))
    with open_slide(work.path, tiling.slide_mpp) as slide:
        pixels = [tiles for _, tiles in slide.read_tiles(tiling.coords[places], tiling.size_px, tiling.mpp, how=how)]
    sample = np.concatenate(pixels).reshape(-1, 3)
    return macenko_of(sample) if method == "macenko" else reinhard_of(sample)


def macenko_of(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3) -> the stains' directions in optical density (3 x 2) and 99th percentile strengths (2), as 8 numbers."""
    density = -np.log((pixels.astype(np.float64) + 1) / LIGHT)
    stained = density[(density >= FAINTEST).all(axis=1)]
    if len(stained) < 100:
        raise SlideError("no_stain", "too few stained pixels to find the stains; leave `stain` out for this slide")
    _, axes = np.linalg.eigh(np.cov(stained.T))
    plane = axes[:, 1:]
    projected = stained @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angle, [PERCENTILE, 100 - PERCENTILE])
    one, other = (plane @ np.array([np.cos(at), np.sin(at)]) for at in (low, high))
    stains = np.stack([one, other] if one[0] > other[0] else [other, one], axis=1)  # haematoxylin absorbs more red
    strength = np.percentile(np.linalg.lstsq(stains, density.T, rcond=None)[0], 99, axis=1)
    return np.concatenate([stains.ravel(), strength])


def reinhard_of(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3) -> mean (3) and standard deviation (3) in Ruderman's colour space, as 6 numbers."""
    lab = np.log(np.maximum(pixels.astype(np.float64) @ RGB_TO_LMS.T, DARKEST)) @ LMS_TO_LAB.T
    deviation = lab.std(axis=0)
    if (deviation < 1e-6).any():
        raise SlideError("no_stain", "its tiles are of one colour; leave `stain` out for this slide")
    return np.concatenate([lab.mean(axis=0), deviation])


class Stain:
    """Brings tiles to the target's stains, on the device."""

    def __init__(self, method: Method) -> None:
        self.method: Method = method

    def apply(self, tiles: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, h, w) and what was found of each tile's slide (n, 8 or 6) -> float (n, 3, h, w) in 0-255."""
        pixels = tiles.flatten(2).float()
        changed = self._macenko(pixels, found) if self.method == "macenko" else self._reinhard(pixels, found)
        return changed.clamp(0, 255).reshape(tiles.shape)

    def _macenko(self, pixels: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        target = torch.as_tensor(TARGET_STAINS * TARGET_STRENGTH, device=pixels.device)
        stains, strength = found[:, :6].reshape(-1, 3, 2).double(), found[:, 6:].double()
        unmix = torch.linalg.pinv(stains) / strength[:, :, None]  # (n, 2, 3)
        change = (target @ unmix).float()  # (n, 3, 3): density of the slide -> density of the target
        density = -torch.log((pixels + 1) / LIGHT)
        return LIGHT * torch.exp(-(change @ density))

    def _reinhard(self, pixels: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        to_lms = torch.as_tensor(RGB_TO_LMS, device=pixels.device)
        to_lab = torch.as_tensor(LMS_TO_LAB, device=pixels.device)
        mean, deviation = found[:, :3, None].double(), found[:, 3:, None].double()
        target_mean = torch.as_tensor(TARGET_MEAN, device=pixels.device)[:, None]
        target_sd = torch.as_tensor(TARGET_SD, device=pixels.device)[:, None]
        lab = to_lab @ torch.log((to_lms @ pixels.double()).clamp_min(DARKEST))
        lab = (lab - mean) / deviation * target_sd + target_mean
        return (torch.linalg.inv(to_lms) @ torch.exp(torch.linalg.inv(to_lab) @ lab)).float()
