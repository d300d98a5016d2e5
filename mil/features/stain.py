"""Stain normalisation of H&E: a slide's stains are found on a sample of its tiles, then every tile is brought to a target's.

Macenko: Macenko et al. 2009 (doi 10.1109/ISBI.2009.5193250), target as in their code. Reinhard: Reinhard et al. 2001
(doi 10.1109/38.946629), in the colour space of Ruderman et al. 1998 on RGB from 0 to 255, target of HistomicsTK's
documentation (a slide of TCGA-BRCA, Amgad et al. 2019).
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from mil.errors import SlideError
from mil.features.plan import Work
from mil.slides.slide import Reading, open_slide

if TYPE_CHECKING:
    import torch

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
    return change_of(method, np.concatenate(pixels).reshape(-1, 3))


def change_of(method: Method, pixels: np.ndarray) -> np.ndarray:
    """Pixels of a slide, uint8 (n, 3) -> what brings its stains to the target's, float32: 9 numbers (Macenko) or 6 (Reinhard).

    Macenko: the 3 x 3 matrix from the slide's optical density to the target's. Reinhard: factor and offset of each channel of
    Ruderman's colour space.
    """
    if method == "macenko":
        stains = macenko_of(pixels)
        unmix = np.linalg.pinv(stains[:6].reshape(3, 2)) / stains[6:, None]
        return (TARGET_STAINS * TARGET_STRENGTH @ unmix).astype(np.float32).ravel()
    mean, deviation = np.split(reinhard_of(pixels), 2)
    factor = TARGET_SD / deviation
    return np.concatenate([factor, TARGET_MEAN - mean * factor]).astype(np.float32)


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


class StainNormalisation:
    """Brings tiles to the target's stains, on `device`. Its constants are copied there once."""

    def __init__(self, method: Method, device: "torch.device") -> None:
        import torch

        self.method: Method = method
        self.constants = [
            torch.as_tensor(matrix, dtype=torch.float64, device=device)
            for matrix in (RGB_TO_LMS, LMS_TO_LAB, np.linalg.inv(LMS_TO_LAB), np.linalg.inv(RGB_TO_LMS))
        ]

    def apply(self, tiles: "torch.Tensor", changes: "torch.Tensor") -> "torch.Tensor":
        """uint8 (n, 3, h, w) and `change_of` each tile's slide (n, 9 or 6) -> float (n, 3, h, w) in 0-255."""
        pixels = tiles.flatten(2).float()
        changed = self._macenko(pixels, changes) if self.method == "macenko" else self._reinhard(pixels, changes)
        return changed.clamp(0, 255).reshape(tiles.shape)

    def _macenko(self, pixels: "torch.Tensor", changes: "torch.Tensor") -> "torch.Tensor":
        density = -((pixels + 1) / LIGHT).log()
        return LIGHT * (-(changes.view(-1, 3, 3) @ density)).exp()

    def _reinhard(self, pixels: "torch.Tensor", changes: "torch.Tensor") -> "torch.Tensor":
        to_lms, to_lab, from_lab, from_lms = self.constants
        factor, offset = changes[:, :3, None].double(), changes[:, 3:, None].double()
        lab = to_lab @ (to_lms @ pixels.double()).clamp_min(DARKEST).log()
        return (from_lms @ (from_lab @ (lab * factor + offset)).exp()).float()
