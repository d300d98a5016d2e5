"""What lies between the nuclei, tissue by tissue: haematoxylin and eosin on the drawing's grid."""

import cv2
import numpy as np

from mil.synthetic.fibres import Fibres
from mil.synthetic.noise import Field, enlarge, grain, ramp, signed_distance, smooth_noise
from mil.synthetic.nuclei import DRAW_MPP

Shape = tuple[int, int]


def stroma(fibres: Fibres, shape: Shape, stream: np.random.Generator) -> tuple[Field, Field, Field]:
    """Collagen: eosin (and saffron) along the fibres, nothing in the clefts. The third field is the yellow."""
    density = 1 + np.float32(0.20) * smooth_noise(stream, shape, 160 / DRAW_MPP, 2)
    e = np.clip(np.float32(0.25) + np.float32(0.075) * fibres.eosin, 0.04, None) * density
    e *= np.float32(0.10) + np.float32(0.90) * fibres.clefts
    h = np.float32(0.06) * fibres.clefts + np.float32(0.03) * np.clip(fibres.eosin, -1, None) * fibres.clefts
    return h, e, e * np.float32(0.9)


def lymphoid(shape: Shape, stream: np.random.Generator) -> tuple[Field, Field]:
    """What lies between lymphocytes: thin, lilac, with bright gaps."""
    loose = smooth_noise(stream, shape, 9 / DRAW_MPP, 3)
    filled = ramp(loose + np.float32(0.45), 1.6)
    return np.float32(0.12) * filled + np.float32(0.015), np.float32(0.15) * filled + np.float32(0.02)


def cytoplasm(centres: np.ndarray, shape: Shape, stream: np.random.Generator) -> tuple[Field, Field]:
    """Tumour cells: amphophilic bodies around the nuclei, each of its own shade, with faint borders and vacuoles."""
    coarse = (shape[0] // 2, shape[1] // 2)
    cell = _nearest(centres[:, 0] / (2 * DRAW_MPP), centres[:, 1] / (2 * DRAW_MPP), coarse)
    shade_h, shade_e = stream.normal(0, 1, (2, int(cell.max()) + 1)).astype(np.float32)[:, cell]
    border = cv2.GaussianBlur(_borders(cell).astype(np.float32), (0, 0), 0.8)
    broad = smooth_noise(stream, coarse, 70, 2)
    mottled = smooth_noise(stream, shape, 5 / DRAW_MPP, 2)
    seen = np.clip(np.float32(0.25) + np.float32(0.5) * broad, 0, 1)  # borders show in places only
    pale = enlarge(1 - np.float32(0.75) * border * seen, shape)
    pale *= 1 - np.float32(0.9) * ramp(mottled - np.float32(2.4), 0.5)  # vacuoles
    h = enlarge(
        np.float32(0.17) + np.float32(0.03) * cv2.GaussianBlur(shade_h, (0, 0), 1.0) + np.float32(0.03) * broad, shape
    )
    e = enlarge(np.float32(0.20) + np.float32(0.04) * cv2.GaussianBlur(shade_e, (0, 0), 1.0), shape)
    h += np.float32(0.035) * mottled
    e += np.float32(0.025) * mottled
    return np.maximum(h * pale, np.float32(0.01)), np.maximum(e * pale, np.float32(0.01))


def _nearest(x: np.ndarray, y: np.ndarray, shape: Shape) -> np.ndarray:
    """For every pixel which of the points is nearest, as a label: the cells of a Voronoi diagram."""
    seeds = np.ones(shape, np.uint8)
    seeds[np.clip(y.astype(int), 0, shape[0] - 1), np.clip(x.astype(int), 0, shape[1] - 1)] = 0
    return cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]


def _borders(cell: np.ndarray) -> np.ndarray:
    """Pixels whose neighbour below or to the right belongs to another cell."""
    border = np.zeros(cell.shape, bool)
    border[:-1] = cell[:-1] != cell[1:]
    border[:, :-1] |= cell[:, :-1] != cell[:, 1:]
    return border


def necrotic(shape: Shape, stream: np.random.Generator) -> tuple[Field, Field]:
    """Dead tissue: granular, pink, without structure."""
    granular = grain(stream, shape, 1.2) + smooth_noise(stream, shape, 14 / DRAW_MPP, 3)
    h = np.float32(0.08) + np.float32(0.02) * granular
    return h, np.clip(np.float32(0.30) + np.float32(0.06) * granular, 0.05, None)


def adipocytes(fat: Field, shape: Shape, stream: np.random.Generator) -> tuple[Field, Field]:
    """Fat: empty vacuoles with thin pink walls, drawn at half the resolution."""
    coarse = (shape[0] // 2, shape[1] // 2)
    if not fat.any():
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    step = int(stream.uniform(48, 66))  # at 1 micron a pixel
    rows, columns = np.mgrid[0 : coarse[0] : step, 0 : coarse[1] : step].reshape(2, -1)
    jitter = stream.uniform(-0.42, 0.42, (2, rows.size)) * step
    inner = ~_borders(_nearest(columns + jitter[1], rows + jitter[0], coarse))
    depth = signed_distance(inner & (cv2.resize(fat, coarse[::-1]) > 0.5), 1.0)
    depth = cv2.GaussianBlur(depth, (0, 0), 4.0) + np.float32(0.4) * smooth_noise(stream, coarse, 10, 2)
    wall = np.clip(enlarge(1 - ramp(depth - np.float32(2.6), 1.5), shape), 0, 1)
    return np.float32(0.04) * wall, np.float32(0.28) * wall


def vessels(tubes: np.ndarray, h: Field, e: Field, yellow: Field, stream: np.random.Generator) -> None:
    """Small vessels with red cells, in place."""
    for x, y, radius in tubes:
        part, distance = _around(x, y, radius + 6, h, stream, squash=stream.uniform(0.55, 1.0))
        wall, lumen = np.exp(-(((distance - radius) / 1.8) ** 2)), ramp(radius - 1 - distance, 1.5)
        crowd = grain(stream, (distance.shape[0], distance.shape[1]), 2.6) + np.float32(stream.uniform(-0.6, 1.2))
        full = lumen * ramp(crowd, 0.8)
        h[part] = h[part] * (1 - lumen) + 0.10 * wall
        e[part] = np.maximum(e[part] * (1 - lumen), 0.34 * wall) * (1 - full) + full * 0.62
        yellow[part] = yellow[part] * (1 - lumen) + full * 0.6


def ducts(tubes: np.ndarray, h: Field, e: Field, yellow: Field, stream: np.random.Generator) -> None:
    """Benign ducts, two rows of cells around an empty lumen, in place."""
    for x, y, radius in tubes:
        part, distance = _around(x, y, radius + 16, h, stream, squash=1.0)
        body, lumen = ramp(radius + 13 - distance, 2.5), ramp(radius - 7 - distance, 3.0)
        basement = np.exp(-(((distance - radius - 13.5) / 1.8) ** 2))
        h[part] = (h[part] + body * (0.15 - h[part])) * (1 - lumen)
        e[part] = (e[part] + body * (0.22 - e[part]) + 0.12 * basement) * (1 - lumen)
        yellow[part] *= 1 - body


def _around(
    x: float, y: float, reach: float, field: Field, stream: np.random.Generator, squash: float
) -> tuple[tuple[slice, slice], Field]:
    """The window around a tube and every pixel's distance to its axis in microns, with a wobbly outline."""
    left, top = (max(int((at - reach * 1.4) / DRAW_MPP), 0) for at in (x, y))
    right, bottom = (int((at + reach * 1.4) / DRAW_MPP) for at in (x, y))
    part = (slice(top, min(bottom, field.shape[0])), slice(left, min(right, field.shape[1])))
    rows, columns = np.mgrid[part].astype(np.float32) * np.float32(DRAW_MPP)
    turn = stream.random() * np.pi
    along = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    beside = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    around = np.arctan2(beside, along)
    wobble = 1 + 0.06 * np.cos(2 * around + stream.random() * 6) + 0.05 * np.cos(3 * around + stream.random() * 6)
    return part, (np.hypot(along, beside / squash) / wobble).astype(np.float32)
