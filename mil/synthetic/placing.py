"""Layout -> where the nuclei of every kind lie."""

import numpy as np

from mil.synthetic import nuclei as nu
from mil.synthetic.layout import LAYOUT_UM, Layout, Traits
from mil.synthetic.noise import Field, ramp
from mil.synthetic.nuclei import Nuclei


def place(layout: Layout, fibre_angle: Field, traits: Traits, stream: np.random.Generator) -> list[Nuclei]:
    """The nuclei of a piece, kind by kind; the first group are the tumour's. `fibre_angle` is on the layout's grid."""
    tissue = ramp(layout.tissue - 4, 2.0)
    living = tissue * (1 - ramp(layout.fat, 4.0)) * (1 - ramp(layout.necrosis, 8.0))
    nest, lymph = ramp(layout.nest - 3, 3.0), ramp(layout.lymphocytes, 18.0)
    infiltrate = stream.uniform(0.005, 0.03)
    chances = [
        (nu.tumour_kind(traits.nucleus_um, traits.pleomorphism), living * nest, 14000),
        (nu.MITOSIS, living * nest, traits.mitoses_mm2),
        (nu.LYMPHOCYTE, living * np.maximum(lymph * (1 - 0.72 * nest), infiltrate), 26000),
        (nu.PLASMA_CELL, living * lymph * (1 - nest), 3000),
        (nu.FIBROBLAST, living * (1 - nest) * (1 - 0.8 * lymph), 2600),
        (nu.DEBRIS, tissue * ramp(layout.necrosis, 8.0), 5000),
    ]
    groups = []
    for kind, chance, density in chances:
        centres = scatter(stream, chance, density)
        cells = (centres / LAYOUT_UM).astype(int)
        angles = fibre_angle[cells[:, 1], cells[:, 0]] + 0.22 * stream.standard_normal(len(cells))
        groups.append(Nuclei(kind, centres, angles))
    rings = [_ring(layout.ducts, nu.BENIGN, 7.0, 0.0, stream), _ring(layout.ducts, nu.BENIGN, 9.0, 8.5, stream)]
    rings.append(_ring(layout.vessels, nu.ENDOTHELIUM, 7.5, 1.0, stream))
    free = [_outside(group, np.concatenate([layout.ducts, layout.vessels])) for group in groups]
    return nu.thin([free[0], *rings, *free[1:]])


def scatter(stream: np.random.Generator, chance: Field, density_mm2: float) -> np.ndarray:
    """Points (x, y in microns) at `density_mm2` where `chance` (layout grid) is 1, thinner where it is less."""
    rows, columns = chance.shape
    area_mm2 = rows * columns * LAYOUT_UM**2 / 1e6
    points = stream.random((stream.poisson(density_mm2 * area_mm2), 2)) * (columns, rows)
    here = chance[points[:, 1].astype(int), points[:, 0].astype(int)]
    return points[stream.random(len(points)) < here] * LAYOUT_UM


def _ring(
    tubes: np.ndarray, kind: nu.NucleusKind, apart_um: float, beyond_um: float, stream: np.random.Generator
) -> Nuclei:
    """Nuclei lined up around ducts or vessels."""
    centres, angles = [np.empty((0, 2))], [np.empty(0)]
    for x, y, radius in tubes:
        number = max(int(2 * np.pi * (radius + beyond_um) / apart_um), 3)
        at = (np.arange(number) + 0.6 * stream.random(number)) / number * 2 * np.pi
        reach = radius + beyond_um + stream.normal(0, 0.8, number)
        centres.append(np.stack([x + reach * np.cos(at), y + reach * np.sin(at)], axis=1))
        angles.append(at + (0.0 if kind is nu.BENIGN and beyond_um == 0 else np.pi / 2))
    return Nuclei(kind, np.concatenate(centres), np.concatenate(angles))


def _outside(group: Nuclei, tubes: np.ndarray) -> Nuclei:
    """The nuclei that do not lie in a duct or vessel."""
    if not len(tubes) or not len(group.centres):
        return group
    away = np.hypot(group.centres[:, None, 0] - tubes[:, 0], group.centres[:, None, 1] - tubes[:, 1]) - tubes[:, 2]
    free = away.min(axis=1) > 6
    return Nuclei(group.kind, group.centres[free], group.angles[free])
