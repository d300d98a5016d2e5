"""Pixels -> the optical densities of haematoxylin and eosin (Macenko et al. 2009, ISBI, 1107-1110)."""

import numpy as np

FAINT_DENSITY = 0.15  # optical density below which a pixel is glass; Macenko's beta
TAIL = 1.0  # percentile of angles taken as pure stain; Macenko's alpha
FEWEST_PIXELS = 500


def stain_vectors(pixels: np.ndarray) -> np.ndarray | None:
    """Unit optical-density vectors (2, 3) in RGB, haematoxylin first, of uint8 `pixels` (n, 3); none where tissue is too little."""
    density = -np.log((pixels.astype(np.float64) + 1) / 256)
    stained = density[(density > FAINT_DENSITY).all(axis=1)]
    if len(stained) < FEWEST_PIXELS:
        return None
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]]
    plane = plane * np.sign(plane.sum(axis=0, keepdims=True) + 1e-12)
    along = stained @ plane
    angles = np.arctan2(along[:, 1], along[:, 0])
    extremes = np.percentile(angles, [TAIL, 100 - TAIL])
    found = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in extremes])
    found = np.abs(found) / np.linalg.norm(found, axis=1, keepdims=True)
    # haematoxylin absorbs more red than eosin does
    return found[np.argsort(-found[:, 0] / found.sum(axis=1))]
