"""Layout -> nuclei: where they lie, and small pictures of them to be laid on the stain maps."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from mil.synthetic.noise import Field, grain

DRAW_MPP = 0.5
ANGLES = 24  # orientations of a bank whose nuclei follow the fibres


@dataclass(frozen=True)
class NucleusKind:
    """How nuclei of one kind look. Concentrations are of haematoxylin, see `stains`."""

    diameter_um: float
    spread: float
    """Relative deviation of the diameter."""
    aspect: tuple[float, float]
    """Short over long axis, from and to."""
    lobes: float
    """How far the outline leaves the ellipse."""
    stain: tuple[float, float]
    rim: float
    """Darker membrane, relative."""
    chromatin: float
    """Depth of the chromatin's texture, relative."""
    nucleoli: float
    """Mean number of nucleoli."""
    apart: float
    """Least distance of two neighbours, in mean diameters."""
    directed: bool = False
    """Whether it lies along the fibres."""
    variants: int = 40


def tumour_kind(nucleus_um: float, pleomorphism: float) -> NucleusKind:
    """Large, vesicular, with nucleoli; the more so the more pleomorphic."""
    return NucleusKind(
        diameter_um=nucleus_um, spread=0.10 + 0.20 * pleomorphism, aspect=(0.58, 0.98), lobes=0.04 + 0.05 * pleomorphism,
        stain=(0.28, 0.66), rim=0.38, chromatin=0.20 + 0.1 * pleomorphism, nucleoli=0.7 + pleomorphism, apart=0.80, variants=80,
    )  # fmt: skip


LYMPHOCYTE = NucleusKind(6.3, 0.13, (0.72, 1.0), 0.06, (0.70, 1.25), 0.12, 0.20, 0.0, 0.76, variants=60)
PLASMA_CELL = NucleusKind(7.6, 0.10, (0.66, 0.95), 0.05, (0.50, 0.90), 0.30, 0.30, 0.3, 0.8)
FIBROBLAST = NucleusKind(6.6, 0.28, (0.11, 0.34), 0.10, (0.38, 0.85), 0.10, 0.18, 0.0, 1.3, directed=True, variants=5)
ENDOTHELIUM = NucleusKind(4.8, 0.12, (0.30, 0.55), 0.08, (0.45, 0.85), 0.10, 0.15, 0.0, 0.9, directed=True, variants=2)
BENIGN = NucleusKind(7.4, 0.10, (0.60, 0.92), 0.05, (0.45, 0.80), 0.25, 0.22, 0.2, 0.72, directed=True, variants=3)
MITOSIS = NucleusKind(8.5, 0.15, (0.30, 0.55), 0.20, (1.05, 1.35), 0.0, 0.10, 0.0, 1.6, variants=16)
DEBRIS = NucleusKind(3.2, 0.35, (0.6, 1.0), 0.15, (0.40, 1.10), 0.0, 0.05, 0.0, 0.9, variants=20)


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one kind."""

    kind: NucleusKind
    centres: np.ndarray
    """(number, 2): x, y in microns."""
    angles: np.ndarray
    """(number,): direction of the long axis in radians, in the image (y down)."""


def thin(groups: list[Nuclei]) -> list[Nuclei]:
    """Drop the nuclei that come too close to an earlier one, so that none lie upon each other by chance."""
    centres = np.concatenate([group.centres for group in groups])
    reach = np.concatenate(
        [np.full(len(group.centres), group.kind.diameter_um * group.kind.apart / 2) for group in groups]
    )
    kept = np.ones(len(centres), bool)
    if len(centres) > 1:
        pairs = cKDTree(centres).query_pairs(2 * float(reach.max()), output_type="ndarray")
        distance = np.hypot(*(centres[pairs[:, 0]] - centres[pairs[:, 1]]).T)
        pairs = pairs[distance < reach[pairs].sum(axis=1)]
        for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
            if kept[first]:
                kept[second] = False
    parts = np.split(kept, np.cumsum([len(group.centres) for group in groups])[:-1])
    return [Nuclei(g.kind, g.centres[part], g.angles[part]) for g, part in zip(groups, parts, strict=True)]


@dataclass(frozen=True)
class Bank:
    """Pictures of nuclei of one kind (variant, side, side), float32."""

    cover: np.ndarray
    """How much of the pixel the nucleus takes, 0-1."""
    stain: np.ndarray
    """Haematoxylin in the nucleus."""


def draw_banks(tumour: NucleusKind, stream: np.random.Generator) -> dict[NucleusKind, Bank]:
    """Draw a slide's banks, of every kind."""
    kinds = (tumour, LYMPHOCYTE, PLASMA_CELL, FIBROBLAST, ENDOTHELIUM, BENIGN, MITOSIS, DEBRIS)
    return {kind: draw_bank(kind, stream) for kind in kinds}


def draw_bank(kind: NucleusKind, stream: np.random.Generator) -> Bank:
    """Draw a bank of variants; a directed kind has `variants` for each of `ANGLES` directions, direction by direction."""
    number = kind.variants * (ANGLES if kind.directed else 1)
    angle = (
        np.repeat(np.arange(ANGLES) * np.pi / ANGLES, kind.variants) if kind.directed else stream.random(number) * np.pi
    )
    diameter = kind.diameter_um / DRAW_MPP * np.exp(kind.spread * np.clip(stream.standard_normal(number), -2, 2.4))
    aspect = stream.uniform(*kind.aspect, number)
    long, short = diameter / 2 / np.sqrt(aspect), diameter / 2 * np.sqrt(aspect)
    half = int(np.ceil(long.max() * (1 + 2 * kind.lobes))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    turn, (a, b) = _column(angle), (_column(long), _column(short))
    along, beside = (x * np.cos(turn) + y * np.sin(turn)) / a, (y * np.cos(turn) - x * np.sin(turn)) / b
    around = np.arctan2(beside, along)
    outline = np.ones_like(around)
    for wave in (2, 3, 4, 5):
        size, phase = kind.lobes * stream.standard_normal(number) / (wave - 1), stream.random(number) * 2 * np.pi
        outline += _column(size) * np.cos(wave * around + _column(phase))
    depth = (outline - np.hypot(along, beside)) * np.sqrt(a * b)  # pixels below the membrane
    stain = _chromatin(kind, stream, depth, x, y, _column(np.minimum(long, short)))
    return Bank(np.clip(depth / 1.8 + 0.5, 0, 1).astype(np.float32), stain.astype(np.float32))


def _column(values: np.ndarray) -> np.ndarray:
    """One value a picture, to be spread over its pixels."""
    return values.astype(np.float32)[:, None, None]


def _chromatin(
    kind: NucleusKind, stream: np.random.Generator, depth: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """Haematoxylin inside: a base, a rim, clumps, nucleoli."""
    number, side = depth.shape[0], depth.shape[1]
    clumps = grain(stream, (number * side, side), 1.3).reshape(depth.shape)
    clumps = clumps + 0.8 * grain(stream, (number * side, side), 2.6).reshape(depth.shape)
    base = _column(stream.uniform(*kind.stain, number))
    stain = base * (1 + kind.rim * np.exp(-(((depth - 0.8) / 1.3) ** 2)) + kind.chromatin * clumps)
    for _ in range(3):
        there = stream.random(number) < kind.nucleoli / 3
        at_x, at_y = (radius * 0.5 * _column(stream.uniform(-1, 1, number)) for _ in range(2))
        size = _column(stream.uniform(1.2, 2.3, number))
        blob = np.exp(-((((x - at_x) ** 2 + (y - at_y) ** 2) / size**2) ** 1.5))
        stain = stain + _column(there * stream.uniform(0.45, 0.8, number)) * blob
    return np.clip(stain, 0.02, 2.0)


def lay(nuclei: Nuclei, bank: Bank, stream: np.random.Generator, haematoxylin: Field, eosin: Field) -> None:
    """Lay nuclei on the stain maps, in place: what lies under a nucleus gives way to it."""
    number, side = len(nuclei.centres), bank.cover.shape[1]
    half = side // 2
    if nuclei.kind.directed:
        towards = np.round(np.mod(nuclei.angles, np.pi) / np.pi * ANGLES).astype(int) % ANGLES
        pick = towards * nuclei.kind.variants + stream.integers(0, nuclei.kind.variants, number)
    else:
        pick = stream.integers(0, len(bank.cover), number)
    turns = np.zeros(number, int) if nuclei.kind.directed else stream.integers(0, 8, number)
    in_focus = stream.uniform(0.6, 1.0, number).astype(np.float32)
    left_top = np.floor(nuclei.centres / DRAW_MPP).astype(int) - half
    rows, columns = haematoxylin.shape
    for (left, top), which, turn, focus in zip(left_top.tolist(), pick.tolist(), turns.tolist(), in_focus, strict=True):
        if left < 0 or top < 0 or left + side > columns or top + side > rows:
            continue
        cover, stain = _turned(bank.cover[which], turn) * focus, _turned(bank.stain[which], turn)
        h, e = haematoxylin[top : top + side, left : left + side], eosin[top : top + side, left : left + side]
        h += cover * (stain - h * np.float32(0.8))
        e *= 1 - np.float32(0.55) * cover


def _turned(picture: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight turns and flips of a square picture, as a view."""
    picture = picture.T if turn & 1 else picture
    picture = picture[::-1] if turn & 2 else picture
    return picture[:, ::-1] if turn & 4 else picture
