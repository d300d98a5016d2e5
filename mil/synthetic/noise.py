"""A random stream -> smooth fields: the raw material of outlines, tissue patterns, fibres and grain."""

import cv2
import numpy as np

Field = np.ndarray  # float32 (height, width)
KNOT_DEVIATION = 0.86  # of white noise of deviation 1 interpolated cubically (measured)


def smooth_noise(stream: np.random.Generator, shape: tuple[int, int], scale: float, octaves: int = 3) -> Field:
    """Value noise of mean 0 and deviation about 1 whose largest features are about `scale` pixels wide."""
    finest = scale / 2 ** (octaves - 1)
    coarser = max(int(finest / 2), 1)  # a grid of half the finest feature holds it all
    rows, columns = (-(-side // coarser) for side in shape)
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        step = max(scale / coarser / 2**octave, 1.0)
        knots = stream.standard_normal((int(rows / step) + 4, int(columns / step) + 4), dtype=np.float32)
        shift = 1 + stream.random(2) / step
        to_knots = np.array([[1 / step, 0, shift[0]], [0, 1 / step, shift[1]]], np.float32)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        wave = cv2.warpAffine(knots, to_knots, (columns, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        total += wave * np.float32(0.55**octave)
    total /= np.float32(KNOT_DEVIATION * np.sqrt(sum(0.55 ** (2 * octave) for octave in range(octaves))))
    return total if coarser == 1 else enlarge(total, shape)


def grain(stream: np.random.Generator, shape: tuple[int, int], sigma: float = 0.0) -> Field:
    """White noise of deviation 1, blurred by `sigma` pixels; one block is laid side by side, which no eye sees."""
    block = stream.standard_normal((min(shape[0], 509), min(shape[1], 521)), dtype=np.float32)
    if sigma > 0:
        block = _wrapped(block, sigma)
        block /= block.std()
    repeats = (-(-shape[0] // block.shape[0]), -(-shape[1] // block.shape[1]))
    return np.ascontiguousarray(np.tile(block, repeats)[: shape[0], : shape[1]])


def _wrapped(block: Field, sigma: float) -> Field:
    """Gaussian blur that goes round the edges, so that blocks join without a seam."""
    pad = int(4 * sigma) + 1
    blurred = cv2.GaussianBlur(np.pad(block, pad, mode="wrap"), (0, 0), sigma)
    return blurred[pad:-pad, pad:-pad]


def signed_distance(mask: np.ndarray, unit: float) -> Field:
    """Distance to the border of `mask`, positive inside, in multiples of `unit` a pixel."""
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    return cv2.GaussianBlur((inside - outside) * np.float32(unit), (0, 0), 1.0)


def enlarge(field: Field, shape: tuple[int, int], smoothly: bool = False) -> Field:
    """The field on a finer grid; `smoothly` where its level lines will be seen."""
    return cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC if smoothly else cv2.INTER_LINEAR)


def ramp(field: Field, width: float) -> Field:
    """0 well outside, 1 well inside, over `width` around zero."""
    return np.clip(field / np.float32(width) + np.float32(0.5), 0, 1)
