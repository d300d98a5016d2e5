"""What a patient's tissue is like -> which tissue lies where on a slide, on a grid of `LAYOUT_UM` microns."""

from dataclasses import dataclass

import cv2
import numpy as np

from mil.synthetic.noise import Field, signed_distance, smooth_noise

LAYOUT_UM = 4.0
TRUTH_UM = 8.0  # two layout cells: layouts have an even number of them
MARGIN_UM = 120.0
GAP_UM = 90.0
SPECK_UM2 = 10_000.0
LENGTH_UM = (1100, 1500)
PAD = 6  # layout cells around a piece


@dataclass(frozen=True)
class Traits:
    """What a patient's tumour is like; shares are of the tissue's area."""

    lymphocytes: float
    """Share of lymphocyte-rich tissue: what raises the chance of response."""
    cellularity: float
    """Share of tumour nests in the tissue that is not fat."""
    nest_um: float
    """Breadth of nests: small cords to solid sheets."""
    fat: float
    necrosis: float
    """Share of the nests' inside that is necrotic."""
    pleomorphism: float
    """Spread of the tumour nuclei's sizes, 0-1."""
    nucleus_um: float
    """Mean diameter of tumour nuclei."""
    mitoses_mm2: float


@dataclass(frozen=True)
class Layout:
    """Signed distances in microns, positive inside (height, width), and points in microns (x, y)."""

    tissue: Field
    fat: Field
    nest: Field
    necrosis: Field
    lymphocytes: Field
    flow: Field
    """A potential whose level lines the collagen follows."""
    vessels: np.ndarray
    """(number, 3): x, y, radius."""
    ducts: np.ndarray
    """(number, 3): x, y, radius."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        height, width = self.tissue.shape
        return height, width

    def truth(self) -> np.ndarray:
        """The lymphocyte-rich area, uint8 (height, width) at `TRUTH_UM`, 255 where at least half a cell is."""
        inside = ((self.lymphocytes > 0) & (self.tissue > 0)).astype(np.float32)
        rows, columns = self.shape
        share = inside.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
        return np.where(share >= 0.5, np.uint8(255), np.uint8(0))

    def pieces(self) -> list[tuple[slice, slice, "Layout"]]:
        """Every piece of tissue by itself: the rows and columns of its window, and its part of the layout."""
        number, labels, stats, _ = cv2.connectedComponentsWithStats((self.tissue > 0).astype(np.uint8))
        pieces = []
        for label in range(1, number):
            left, top, width, height = stats[label, :4].tolist()
            rows = slice(max(top - PAD, 0), min(top + height + PAD, self.shape[0]))
            columns = slice(max(left - PAD, 0), min(left + width + PAD, self.shape[1]))
            other = (labels[rows, columns] != label) & (labels[rows, columns] > 0)
            other = cv2.dilate(other.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            parts = {
                name: getattr(self, name)[rows, columns]
                for name in ("tissue", "fat", "nest", "necrosis", "lymphocytes", "flow")
            }
            parts["tissue"] = np.where(other, np.float32(-100), parts["tissue"])
            corner = np.array([columns.start, rows.start, 0]) * LAYOUT_UM
            size = np.array([columns.stop - columns.start, rows.stop - rows.start]) * LAYOUT_UM
            tubes = {}
            for name in ("vessels", "ducts"):
                shifted = getattr(self, name) - corner
                tubes[name] = shifted[((shifted[:, :2] > 0) & (shifted[:, :2] < size)).all(axis=1)]
            pieces.append((rows, columns, Layout(**parts, **tubes)))
        return pieces


def lay_out(traits: Traits, stream: np.random.Generator) -> Layout:
    """Draw one slide's layout: one to three pieces of a core biopsy and what is in them."""
    tissue, axis = _pieces(stream)
    tissue = _without_specks(tissue)
    inside = tissue > 0
    shape = (tissue.shape[0], tissue.shape[1])
    fat = _cut(_noise(stream, shape, 260, 2) + 0.4 * _noise(stream, shape, 60), inside, traits.fat)
    solid = inside & (fat < 0)
    nest = _nests(traits, stream, solid, axis)
    deep = nest > 22
    necrosis = _cut(_noise(stream, shape, 90) + nest / 60, deep, traits.necrosis)
    lymphocytes = _clusters(traits, stream, solid & (necrosis < 0), nest, inside)
    flow = 0.9 * _noise(stream, shape, 220, 2) * 30 + np.clip(nest, -50, 15) * 0.8 + axis * 0.9
    stroma = solid & (nest < -14) & (lymphocytes < -10) & (tissue > 25)
    vessels = _spots(stream, stroma, 10, radii_um=(4, 13), apart_um=60)
    benign = solid & (nest < -40) & (lymphocytes < -25) & (tissue > 45)
    ducts = _spots(stream, benign, int(stream.integers(0, 3)), radii_um=(13, 28), apart_um=120)
    return Layout(tissue, fat, nest, necrosis, lymphocytes, flow.astype(np.float32), vessels, ducts)


def _noise(stream: np.random.Generator, shape: tuple[int, int], scale_um: float, octaves: int = 3) -> Field:
    return smooth_noise(stream, shape, scale_um / LAYOUT_UM, octaves)


def _cut(field: Field, where: np.ndarray, share: float) -> Field:
    """Signed distance of the highest `share` of `field` within `where`; far outside everywhere when that is nothing."""
    if share <= 0 or not where.any():
        return np.full(field.shape, -1e3, np.float32)
    level = np.quantile(field[where], 1 - min(share, 1.0))
    return signed_distance((field > level) & where, LAYOUT_UM)


def _pieces(stream: np.random.Generator) -> tuple[Field, Field]:
    """Outlines of the core's pieces, one above the other, and the height across each core in microns."""
    number = int(stream.choice([1, 2, 3], p=[0.2, 0.55, 0.25]))
    length_um = stream.uniform(*LENGTH_UM)
    parts = stream.dirichlet(np.full(number, 12.0)) * length_um
    half_um = stream.uniform(108, 150, number) * (1.12 if number == 1 else 1.0)
    bend_um = np.minimum(parts * 0.06, 60) * stream.uniform(-1, 1, number)
    tilt = stream.uniform(-0.10, 0.10, number)
    reach = half_um * 1.25 + np.abs(bend_um) + np.abs(tilt) * parts / 2
    width_um = parts.max() + 2 * half_um.max() + 2 * MARGIN_UM
    height_um = 2 * reach.sum() + GAP_UM * (number - 1) + 2 * MARGIN_UM
    rows, columns = (2 * int(np.ceil(side / LAYOUT_UM / 2)) for side in (height_um, width_um))
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * np.float32(LAYOUT_UM) + np.float32(LAYOUT_UM / 2)
    tissue, axis = np.full((rows, columns), -1e3, np.float32), np.zeros((rows, columns), np.float32)
    top = MARGIN_UM
    for k in range(number):
        middle_y = top + reach[k]
        middle_x = width_um / 2 + stream.uniform(-0.5, 0.5) * max(
            width_um - parts[k] - 2 * half_um[k] - 2 * MARGIN_UM, 0
        )
        outline, across = _core(stream, x - middle_x, y - middle_y, parts[k], half_um[k], bend_um[k], tilt[k])
        axis = np.where(outline > tissue, across, axis)
        tissue = np.maximum(tissue, outline)
        top += 2 * reach[k] + GAP_UM
    return tissue, axis


def _without_specks(tissue: Field) -> Field:
    """Only pieces that could be seen."""
    number, labels, stats, _ = cv2.connectedComponentsWithStats((tissue > 0).astype(np.uint8))
    specks = [label for label in range(1, number) if stats[label, cv2.CC_STAT_AREA] * LAYOUT_UM**2 < SPECK_UM2]
    return np.where(np.isin(labels, specks), np.float32(-LAYOUT_UM), tissue)


def _core(
    stream: np.random.Generator, x: Field, y: Field, length_um: float, half_um: float, bend_um: float, tilt: float
) -> tuple[Field, Field]:
    """Signed distance to a bent strip with ragged sides, and the height above its middle line, both in microns."""
    shape = (x.shape[0], x.shape[1])
    t = x / (length_um / 2)
    middle = bend_um * (1 - t**2) - bend_um / 2 + tilt * x
    wobble = _noise(stream, (1, shape[1]), 300, 3)[0] * 0.09
    across = y - middle
    beyond = np.maximum(np.abs(x) - length_um / 2, 0)
    ends = 1 - 0.35 * np.clip((np.abs(t) - 0.75) / 0.25, 0, 1) ** 2
    distance = half_um * (1 + wobble)[None, :] * ends - np.hypot(across, beyond * 1.6)
    ragged = 10 * _noise(stream, shape, 70, 4) + 6 * _noise(stream, shape, 22, 3)
    mask = distance + ragged > 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    return signed_distance(labels == largest, LAYOUT_UM), across.astype(np.float32)


def _nests(traits: Traits, stream: np.random.Generator, solid: np.ndarray, axis: Field) -> Field:
    """Tumour nests: the high ground of a noise as broad as the nests, warped so that cords bend and branch."""
    shape = (solid.shape[0], solid.shape[1])
    ground = _noise(stream, shape, traits.nest_um, 2) + 0.55 * _noise(stream, shape, 420, 1)
    warp = _noise(stream, shape, traits.nest_um * 1.5, 2) * 4
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    ground = cv2.remap(ground, x + warp, y - np.roll(warp, 37, axis=1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return _cut(ground, solid, traits.cellularity)


def _clusters(
    traits: Traits, stream: np.random.Generator, allowed: np.ndarray, nest: Field, inside: np.ndarray
) -> Field:
    """Lymphocyte clusters: patches and bands that prefer the stroma along the nests."""
    shape = (allowed.shape[0], allowed.shape[1])
    beside = np.exp(-(((nest + 18) / 26) ** 2))
    ground = _noise(stream, shape, 150, 3) + 0.5 * _noise(stream, shape, 420, 1) + 1.1 * beside - 0.7 * (nest > 12)
    share = traits.lymphocytes * inside.sum() / max(allowed.sum(), 1)
    field = _cut(cv2.GaussianBlur(ground.astype(np.float32), (0, 0), 2.0), allowed, min(share, 0.85))
    mask = cv2.morphologyEx((field > 0).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return signed_distance(mask > 0, LAYOUT_UM) if mask.any() else np.full(shape, -1e3, np.float32)


def _spots(
    stream: np.random.Generator, where: np.ndarray, number: int, radii_um: tuple[float, float], apart_um: float
) -> np.ndarray:
    """Up to `number` round things in `where`, at least `apart_um` from each other: x, y, radius in microns."""
    rows, columns = np.nonzero(where)
    spots: list[tuple[float, float, float]] = []
    for pick in stream.integers(0, max(len(rows), 1), 4 * number) if len(rows) else ():
        x, y = (columns[pick] + 0.5) * LAYOUT_UM, (rows[pick] + 0.5) * LAYOUT_UM
        radius = stream.uniform(*radii_um)
        if len(spots) < number and all(np.hypot(x - a, y - b) > apart_um for a, b, _ in spots):
            spots.append((float(x), float(y), float(radius)))
    return np.array(spots, np.float64).reshape(-1, 3)
